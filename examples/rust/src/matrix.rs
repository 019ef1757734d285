//! Numbers of either precision, and matrices of them.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Index, IndexMut, Mul, Sub};

/// What the mathematics needs of a floating-point type.
pub trait Real:
    Copy
    + Debug
    + Default // zero
    + PartialOrd
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
{
    /// The epsilon of layer normalisation: this type's nearest value to 10^-6.
    const EPSILON: Self;
    /// This type's name in a safetensors header.
    const DTYPE: &'static str;
    fn from_f32(value: f32) -> Self;
    fn from_count(count: usize) -> Self;
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    fn write_le(self, bytes: &mut Vec<u8>);
}

macro_rules! real {
    ($type:ident, $dtype:literal) => {
        impl Real for $type {
            const EPSILON: Self = 1e-6;
            const DTYPE: &'static str = $dtype;
            fn from_f32(value: f32) -> Self {
                value.into()
            }
            fn from_count(count: usize) -> Self {
                count as $type
            }
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn write_le(self, bytes: &mut Vec<u8>) {
                bytes.extend(self.to_le_bytes());
            }
        }
    };
}

real!(f32, "F32");
real!(f64, "F64");

/// A matrix, stored row by row. A vector is a matrix of one row.
#[derive(Clone, Debug)]
pub struct Matrix<R> {
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<R>,
}

impl<R: Real> Matrix<R> {
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![R::default(); rows * cols] }
    }

    pub fn from_fn(rows: usize, cols: usize, entry: impl Fn(usize, usize) -> R) -> Self {
        let mut matrix = Self::zeros(rows, cols);
        for i in 0..rows {
            for j in 0..cols {
                matrix[(i, j)] = entry(i, j);
            }
        }
        matrix
    }

    pub fn row(&self, i: usize) -> &[R] {
        &self.data[i * self.cols..(i + 1) * self.cols]
    }

    /// The transpose.
    pub fn t(&self) -> Self {
        Self::from_fn(self.cols, self.rows, |i, j| self[(j, i)])
    }

    /// `count` rows from row `start` on.
    pub fn rows_from(&self, start: usize, count: usize) -> Self {
        Self::from_fn(count, self.cols, |i, j| self[(start + i, j)])
    }

    /// Every entry through f.
    pub fn map(&self, f: impl Fn(R) -> R) -> Self {
        Self::from_fn(self.rows, self.cols, |i, j| f(self[(i, j)]))
    }

    /// The same row added to every row.
    pub fn plus_row(&self, row: &Self) -> Self {
        Self::from_fn(self.rows, self.cols, |i, j| self[(i, j)] + row[(0, j)])
    }

    /// The sum of the rows, as one row.
    pub fn sum_of_rows(&self) -> Self {
        let mut sum = Self::zeros(1, self.cols);
        for i in 0..self.rows {
            for j in 0..self.cols {
                sum[(0, j)] += self[(i, j)];
            }
        }
        sum
    }
}

impl<R> Index<(usize, usize)> for Matrix<R> {
    type Output = R;
    fn index(&self, (i, j): (usize, usize)) -> &R {
        debug_assert!(j < self.cols);
        &self.data[i * self.cols + j]
    }
}

impl<R> IndexMut<(usize, usize)> for Matrix<R> {
    fn index_mut(&mut self, (i, j): (usize, usize)) -> &mut R {
        debug_assert!(j < self.cols);
        &mut self.data[i * self.cols + j]
    }
}

impl<R: Real> Add for &Matrix<R> {
    type Output = Matrix<R>;
    fn add(self, other: Self) -> Matrix<R> {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols));
        Matrix::from_fn(self.rows, self.cols, |i, j| self[(i, j)] + other[(i, j)])
    }
}

/// The matrix product a b.
pub fn matmul<R: Real>(a: &Matrix<R>, b: &Matrix<R>) -> Matrix<R> {
    assert_eq!(a.cols, b.rows);
    let mut product = Matrix::zeros(a.rows, b.cols);
    for i in 0..a.rows {
        for k in 0..a.cols {
            for j in 0..b.cols {
                product[(i, j)] += a[(i, k)] * b[(k, j)];
            }
        }
    }
    product
}

/// The sum of products of two rows.
pub fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    let mut sum = R::default();
    for (&x, &y) in a.iter().zip(b) {
        sum += x * y;
    }
    sum
}

/// The mean of a row.
pub fn mean<R: Real>(row: &[R]) -> R {
    let mut sum = R::default();
    for &x in row {
        sum += x;
    }
    sum / R::from_count(row.len())
}
