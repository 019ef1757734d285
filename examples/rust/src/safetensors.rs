//! The safetensors format: 8 bytes with the header's length, the header (JSON), the data.
//!
//! Nothing in a file is believed before it is checked: a header may promise any size and any offset.

use std::collections::BTreeMap;

use crate::json::Json;
use crate::matrix::{Matrix, Real};

/// Numbers with a shape, as they lie in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<R> {
    pub shape: Vec<usize>,
    pub data: Vec<R>,
}

impl<R> Tensor<R> {
    /// The numbers in rows: the first axis is the rows, all others are columns; a vector is a row.
    pub fn into_matrix(self) -> Matrix<R> {
        let (rows, cols) = match self.shape[..] {
            [rows, ref others @ ..] if !others.is_empty() => (rows, others.iter().product()),
            _ => (1, self.data.len()),
        };
        Matrix { rows, cols, data: self.data }
    }
}

/// Tensors by name.
pub type Tensors<R> = BTreeMap<String, Tensor<R>>;

/// The tensors of a file of float32 tensors.
pub fn parse<R: Real>(bytes: &[u8]) -> Result<Tensors<R>, String> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or("shorter than 8 bytes")?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > rest.len() {
        return Err(format!("a header of {length} bytes, but only {} follow", rest.len()));
    }
    let (header, data) = rest.split_at(length);
    let header = std::str::from_utf8(header).map_err(|_| "the header is not UTF-8")?;
    let Json::Object(entries) = Json::parse(header)? else {
        return Err("the header is not an object".into());
    };

    let mut tensors = Tensors::new();
    let mut spans = Vec::new();
    for (name, entry) in entries {
        if name == "__metadata__" {
            continue;
        }
        let (tensor, span) =
            tensor(&entry, data).map_err(|problem| format!("{name}: {problem}"))?;
        tensors.insert(name, tensor);
        spans.push(span);
    }

    // The format: the tensors fill the data, without a gap and without sharing a byte.
    spans.sort();
    let mut end_of_last = 0;
    for (begin, end) in spans {
        if begin != end_of_last {
            return Err(format!("the tensors leave a gap or overlap at byte {begin} of the data"));
        }
        end_of_last = end;
    }
    if end_of_last != data.len() {
        return Err(format!("{} bytes of data, but the tensors end at {end_of_last}", data.len()));
    }
    Ok(tensors)
}

/// One tensor of the header, and the bytes where it lies.
fn tensor<R: Real>(entry: &Json, data: &[u8]) -> Result<(Tensor<R>, (usize, usize)), String> {
    let dtype = entry.get("dtype").as_str().unwrap_or("none");
    if dtype != "F32" {
        return Err(format!("dtype: expected F32, got {dtype}"));
    }
    let shape = entry.get("shape").as_sizes().ok_or("shape: expected an array of sizes")?;
    let offsets = entry.get("data_offsets").as_sizes();
    let Some([begin, end]) = offsets.as_deref() else {
        return Err("data_offsets: expected two sizes".into());
    };
    let bytes = data
        .get(*begin..*end)
        .ok_or(format!("data_offsets: {begin} to {end} is not inside the data"))?;
    let size = shape.iter().try_fold(4usize, |size, &extent| size.checked_mul(extent));
    if size != Some(bytes.len()) {
        return Err(format!("shape {shape:?} does not fill {} bytes", bytes.len()));
    }
    let numbers = bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap()));
    Ok((Tensor { shape, data: numbers.map(R::from_f32).collect() }, (*begin, *end)))
}

/// The bytes of a file of tensors in their own precision; names need no escape in JSON.
pub fn dump<R: Real>(tensors: &Tensors<R>) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, tensor) in tensors {
        let begin = data.len();
        tensor.data.iter().for_each(|number| number.write_le(&mut data));
        entries.push(format!(
            "\"{name}\":{{\"dtype\":\"{}\",\"shape\":{:?},\"data_offsets\":[{begin},{}]}}",
            R::DTYPE,
            tensor.shape,
            data.len()
        ));
    }
    let mut header = format!("{{{}}}", entries.join(","));
    while header.len() % 8 != 0 {
        header.push(' '); // so that the data is aligned
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn reads_what_it_writes() {
        let tensors = Tensors::from([
            ("a.b".to_string(), Tensor { shape: vec![2, 1], data: vec![1.5f32, -2.0] }),
            ("empty".to_string(), Tensor { shape: vec![3, 0], data: vec![] }),
            ("scalar".to_string(), Tensor { shape: vec![], data: vec![0.25] }),
        ]);
        assert_eq!(parse::<f32>(&dump(&tensors)).unwrap(), tensors);
    }

    #[test]
    fn refuses_a_damaged_file() {
        let one = |entry: &str| format!("{{\"a\":{entry}}}");
        let good = one("{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}");
        assert!(parse::<f32>(&file(&good, &[0; 4])).is_ok());
        let two = |b: &str| {
            format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}},\"b\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":{b}}}}}")
        };
        assert!(parse::<f32>(&file(&two("[4,8]"), &[0; 8])).is_ok());
        for bytes in [
            vec![],
            vec![0; 7],
            u64::MAX.to_le_bytes().to_vec(),
            file("[]", &[]),
            file("{\"a\":1}", &[]),
            file(&good, &[0; 3]),
            file(&good, &[0; 8]),
            file(&two("[0,4]"), &[0; 4]),
            file(&two("[2,6]"), &[0; 8]),
            file(&two("[8,12]"), &[0; 12]),
            file(&one("{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]}"), &[0; 8]),
            file(&one("{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}"), &[0; 4]),
            file(&one("{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}"), &[0; 4]),
            file(&one("{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}"), &[0; 4]),
            // 2^62 * 4 + 4 would be 4, if it were allowed to overflow.
            file(
                &one(
                    "{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,0]}",
                ),
                &[],
            ),
        ] {
            assert!(parse::<f32>(&bytes).is_err(), "{}", String::from_utf8_lossy(&bytes));
        }
    }
}
