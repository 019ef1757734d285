//! Answer a folder of vitspec's test vectors: one result, or one rejection, for each case.
//!
//!     vit-vectors DIR [--f64]

mod config;
mod json;
mod layers;
mod matrix;
mod parameters;
mod safetensors;
mod vit;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use config::Config;
use json::Json;
use matrix::{Matrix, Real};
use parameters::{Flat, Parameters};
use safetensors::{Tensor, Tensors};

enum Answer {
    Result { tensors: usize },
    Rejection(String),
    Skip(String),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (folder, answer): (_, fn(&Path) -> _) = match arguments[..] {
        [folder] => (folder, answer::<f32>),
        [folder, "--f64"] | ["--f64", folder] => (folder, answer::<f64>),
        _ => {
            eprintln!("usage: vit-vectors DIR [--f64]");
            return ExitCode::from(2);
        }
    };
    match answer_all(Path::new(folder), answer) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(2)
        }
    }
}

/// Answer every case, a line each; return how many could not be read.
fn answer_all(folder: &Path, answer: fn(&Path) -> Result<Answer, String>) -> Result<usize, String> {
    let (mut results, mut rejections, mut skips, mut failures) = (0, 0, 0, 0);
    for case in cases(folder)? {
        let id = case.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match answer(&case) {
            Ok(Answer::Result { tensors }) => {
                println!("{id}: {tensors} tensors");
                results += 1;
            }
            Ok(Answer::Rejection(why)) => {
                println!("{id}: rejected, {why}");
                rejections += 1;
            }
            Ok(Answer::Skip(why)) => {
                println!("{id}: skipped, {why}");
                skips += 1;
            }
            Err(problem) => {
                println!("{id}: FAILED, {problem}");
                failures += 1;
            }
        }
    }
    println!("{results} computed, {rejections} rejected, {skips} skipped, {failures} failed");
    Ok(failures)
}

/// The folders below `folder` that hold a case.
fn cases(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut cases: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    cases.retain(|path| path.join("case.json").is_file());
    cases.sort();
    if cases.is_empty() {
        return Err(format!(
            "{}: no cases; `vitspec vectors export` makes such a folder",
            folder.display()
        ));
    }
    Ok(cases)
}

fn answer<R: Real>(folder: &Path) -> Result<Answer, String> {
    let case = read(folder, "case.json")?;
    let case = std::str::from_utf8(&case).map_err(|_| "case.json: not UTF-8")?;
    let case = Json::parse(case).map_err(|problem| format!("case.json: {problem}"))?;
    if case.get("schema").as_str() != Some("vitspec-vector/1") {
        return Err("case.json: expected schema vitspec-vector/1".into());
    }
    for old in ["result.safetensors", "rejected.txt"] {
        let _ = fs::remove_file(folder.join(old));
    }
    let inputs = || {
        safetensors::parse::<R>(&read(folder, "inputs.safetensors")?)
            .map_err(|problem| format!("inputs.safetensors: {problem}"))
    };
    let results = if let Some(layer) = case.get("layer").as_str() {
        let head_count = case.get("settings").get("head_count").as_size().unwrap_or(0);
        match layers::evaluate(layer, head_count, inputs()?)? {
            Some(results) => results,
            None => {
                let masked = case.get("inputs").get("mask") != &Json::Null;
                let with = if masked { " with a mask" } else { "" };
                return Ok(Answer::Skip(format!("this program has no {layer}{with}")));
            }
        }
    } else {
        let cls = match case.get("spec").as_str() {
            Some("vit") => false,
            Some("vit-cls") => true,
            _ => return Ok(Answer::Skip(format!("this program has no {}", case.get("spec")))),
        };
        match Config::new(cls, case.get("config"), case.get("image")) {
            Ok(config) => evaluate(&config, inputs()?)?,
            Err(why) => {
                write(folder, "rejected.txt", format!("{why}\n").as_bytes())?;
                return Ok(Answer::Rejection(why));
            }
        }
    };
    write(folder, "result.safetensors", &safetensors::dump(&results))?;
    Ok(Answer::Result { tensors: results.len() })
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>, String> {
    fs::read(folder.join(name)).map_err(|error| format!("{name}: {error}"))
}

/// Write a file all or nothing: under another name first.
fn write(folder: &Path, name: &str, content: &[u8]) -> Result<(), String> {
    let partial = folder.join(format!("{name}.partial"));
    fs::write(&partial, content)
        .and_then(|()| fs::rename(&partial, folder.join(name)))
        .map_err(|error| format!("{name}: {error}"))
}

/// Logits and gradients at a batch of images; parameters' gradients are summed over the batch.
fn evaluate<R: Real>(config: &Config, mut inputs: Tensors<R>) -> Result<Tensors<R>, String> {
    let images = inputs.remove("images").ok_or("inputs: no images")?;
    let cotangent = inputs.remove("cotangent").ok_or("inputs: no cotangent")?;
    let batch = images.shape.first().copied().unwrap_or(0);
    let image_shape = vec![batch, config.in_channels, config.height, config.width];
    check_shape("images", &images, &image_shape)?;
    check_shape("cotangent", &cotangent, &[batch, config.num_classes])?;
    if config.num_layers > inputs.len() {
        return Err(format!(
            "inputs: {} tensors are not {} layers",
            inputs.len(),
            config.num_layers
        ));
    }
    let shapes = config.parameter_shapes();
    let mut flat = Flat::new();
    for (name, shape) in &shapes {
        let tensor = inputs.remove(name).ok_or(format!("inputs: no {name}"))?;
        check_shape(name, &tensor, shape)?;
        flat.insert(name.clone(), tensor.into_matrix());
    }
    if let Some(name) = inputs.keys().next() {
        return Err(format!("inputs: unexpected {name}"));
    }
    let parameters = Parameters::from_flat(&mut flat, config.num_layers);

    let mut summed = Tensors::new();
    let (mut logits, mut d_images) = (Vec::new(), Vec::new());
    let image_size = config.in_channels * config.height * config.width;
    for b in 0..batch {
        let image = &images.data[b * image_size..(b + 1) * image_size];
        let d_logits = Matrix::from_fn(1, config.num_classes, |_, k| {
            cotangent.data[b * config.num_classes + k]
        });
        let (image_logits, grads, d_image) =
            vit::forward_and_backward(config, &parameters, image, &d_logits);
        logits.extend(image_logits.data);
        d_images.extend(d_image);
        let grads = grads.into_flat();
        for (name, shape) in &shapes {
            let zeros = || Tensor {
                shape: shape.clone(),
                data: vec![R::default(); shape.iter().product()],
            };
            let sum = summed.entry(name.clone()).or_insert_with(zeros);
            for (total, &entry) in sum.data.iter_mut().zip(&grads[name].data) {
                *total += entry;
            }
        }
    }
    summed.insert("logits".into(), Tensor { shape: vec![batch, config.num_classes], data: logits });
    summed.insert("image".into(), Tensor { shape: image_shape, data: d_images });
    Ok(summed)
}

fn check_shape<R>(name: &str, tensor: &Tensor<R>, expected: &[usize]) -> Result<(), String> {
    if tensor.shape == expected {
        return Ok(());
    }
    Err(format!("inputs: {name}: expected shape {expected:?}, got {:?}", tensor.shape))
}
