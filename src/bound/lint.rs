//! Checking one bound file offline.

use super::discover::{MAX_SIZE, too_large, utf8};
use crate::model::bound::{BoundSpec, refused};
use crate::model::quadlet::{Type, Unit, Wants};
use crate::model::{Context, Result};
use std::path::Path;

/// Checks one `.toml`, `.container` or `.image` file and returns the images that it asks for.
///
/// `Image=NAME.image` is looked up beside the file. Fails as discovery would.
pub fn lint_path(path: &Path) -> Result<Vec<String>> {
    let shown = path.display().to_string();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with(".toml") {
        return Ok(vec![BoundSpec::from_toml(&read(path)?, &shown)?.reference.name]);
    }
    let kind = Type::of_name(&name).map_err(|why| refused(&shown, None, why))?;
    match Unit::parse(&read(path)?, &shown)?.wants(kind, &shown)? {
        Wants::Image(spec) => Ok(vec![spec.reference.name]),
        Wants::File(image, line) => {
            let beside = path.with_file_name(&image);
            if !beside.exists() {
                return Err(refused(
                    &shown,
                    Some(line),
                    format!("Image={image}: there is no {image} beside it"),
                ));
            }
            let shown = beside.display().to_string();
            match Unit::parse(&read(&beside)?, &shown)?.wants(Type::Image, &shown)? {
                Wants::Image(spec) => Ok(vec![spec.reference.name]),
                Wants::File(..) => Err(refused(&shown, None, "names another file instead of an image")),
            }
        }
    }
}

fn read(path: &Path) -> Result<String> {
    let shown = path.display().to_string();
    let meta = std::fs::metadata(path).doing_with(|| format!("reading {shown}"))?;
    if !meta.is_file() {
        return Err(refused(&shown, None, "is not a regular file"));
    }
    if meta.len() > MAX_SIZE {
        return Err(too_large(&shown));
    }
    utf8(std::fs::read(path).doing_with(|| format!("reading {shown}"))?, &shown)
}
