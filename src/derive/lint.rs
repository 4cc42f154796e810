//! Checking drop-ins, treefiles and policies offline, without root: all files, all errors, nothing printed.

use super::read::{is_dropin, is_treefile, package_in};
use crate::model::dropin::{self, Beside, Leaf, LeafKind, Local, MAX_CONTENTS, MAX_LEAVES, Merger, Text};
use crate::model::lint::{LintError, LintFile, LintKind};
use crate::model::manifest::Node;
use crate::model::mutation::Policy;
use crate::model::packages::LocalPackage;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::conf;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Deeper directories are not looked into.
const MAX_DEPTH: usize = 32;

/// Checks a file, or everything below a directory: drop-ins directly in a `derive.d`, treefiles directly in an
/// `origin.d` and policies directly in a `policy.d`. A single `.yaml` file is a treefile if it is in an `origin.d`.
///
/// Returns the files in path order, none for a single file that is nothing of these. Fails only if `path` itself
/// cannot be read: everything else is in the report.
pub fn lint(path: &Path) -> Result<Vec<LintFile>> {
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        // A link to where something will be installed: not one of ours.
        Err(_) if path.is_symlink() && !path.extension().is_some_and(|e| e == "yaml" || e == "bu") => {
            return Ok(Vec::new());
        }
        Err(e) => {
            let why = format!("{} cannot be checked", path.display());
            return Err(Error::new(ErrorKind::InvalidArgument, why).source(e));
        }
    };
    let mut found = Vec::new();
    // `osctl lint .` inside a derive.d must work as well, and `osctl lint a.yaml` inside an origin.d.
    let real = path.canonicalize().ok();
    let name = |path: &Path| path.file_name().and_then(|n| n.to_str()).map(str::to_owned);
    if meta.is_dir() {
        walk(path, real.as_deref().and_then(name).as_deref(), 0, &mut found)?;
    } else {
        let dir = real.as_deref().and_then(Path::parent).and_then(name);
        let kind = match path.extension().and_then(|e| e.to_str()) {
            Some("yaml") if dir.as_deref() == Some("origin.d") => LintKind::Treefile,
            Some("yaml" | "yml" | "bu") => LintKind::DropIn,
            Some("toml") if dir.as_deref() == Some("policy.d") => LintKind::Policy,
            _ => return Ok(Vec::new()),
        };
        found.push((path.to_owned(), kind));
    }
    found.sort();
    let mut mergers: BTreeMap<PathBuf, Merger> = BTreeMap::new();
    let files = found.into_iter().map(|(path, kind)| {
        if kind == LintKind::Policy {
            let errors = policy(&path).err().iter().map(LintError::from).collect();
            return LintFile { errors, ..LintFile::new(shown(&path), kind) };
        }
        let dir = path.parent().map(Path::to_owned).unwrap_or_default();
        drop_in(&path, kind, mergers.entry(dir).or_default())
    });
    Ok(files.collect())
}

fn policy(path: &Path) -> Result<()> {
    let text = String::from_utf8(read_file(path, conf::MAX_SIZE)?);
    let text = text.kind(ErrorKind::InvalidArgument, format!("{} is not UTF-8", shown(path)))?;
    Policy::parse(&text, &shown(path)).map(drop)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn walk(dir: &Path, name: Option<&str>, depth: usize, found: &mut Vec<(PathBuf, LintKind)>) -> Result<()> {
    let what = || format!("listing {}", dir.display());
    if depth > MAX_DEPTH {
        return Ok(());
    }
    for entry in std::fs::read_dir(dir).doing_with(what)? {
        let entry = entry.doing_with(what)?;
        let file_type = entry.file_type().doing_with(what)?;
        let path = entry.path();
        let file_name = entry.file_name();
        let Some(file_name) = file_name.to_str().filter(|n| !n.starts_with('.')) else { continue };
        if file_type.is_dir() {
            walk(&path, Some(file_name), depth + 1, found)?;
            continue;
        }
        // A link to /dev/null masks.
        let masked = file_type.is_symlink()
            && std::fs::read_link(&path).is_ok_and(|target| target == Path::new("/dev/null"));
        let kind = match name {
            Some("derive.d") if is_dropin(file_name) || file_name.ends_with(".yml") => LintKind::DropIn,
            Some("origin.d") if is_treefile(file_name) => LintKind::Treefile,
            Some("policy.d") if conf::is_meant(file_name) => LintKind::Policy,
            _ => continue,
        };
        if !masked {
            found.push((path, kind));
        }
    }
    Ok(())
}

fn drop_in(path: &Path, kind: LintKind, merger: &mut Merger) -> LintFile {
    let mut file = LintFile::new(shown(path), kind);
    if path.extension().is_some_and(|e| e == "yml") {
        file.warnings.push(LintError::plain("is ignored: drop-ins end in .yaml", "rename it to .yaml"));
    }
    match check(path, kind, merger, &mut file.warnings) {
        Ok(()) => {}
        Err(e) => file.errors.push(LintError::from(&e)),
    }
    file
}

fn check(path: &Path, kind: LintKind, merger: &mut Merger, warnings: &mut Vec<LintError>) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let text = Text {
        name: if kind == LintKind::Treefile { format!("{}{name}", dropin::TREEFILE_OWNER) } else { name },
        path: shown(path),
        bytes: read_file(path, dropin::MAX_DROPIN)?,
    };
    let declared = dropin::decode(&text, &Directory(dir))?;
    for (name, at, key, node) in declared.nodes() {
        if let Node::File(f) = node
            && f.meta.mode & 0o022 != 0
        {
            warnings.push(LintError {
                line: Some(at.line as u64),
                column: Some(at.column as u64),
                key: Some(key.to_owned()),
                message: format!("{name} can be written by group or others (mode {:04o})", f.meta.mode),
                hint: Some("leave out the write bits of group and others".into()),
            });
        }
    }
    merger.add(declared)
}

/// The directory of a drop-in. Who owns what in it is decided where it is installed.
struct Directory<'d>(&'d Path);

impl Beside for Directory<'_> {
    fn file(&self, name: &str) -> Result<Local> {
        let path = self.0.join(name);
        let bytes = read_file(&path, MAX_CONTENTS)?;
        let private = std::fs::metadata(&path).is_ok_and(|m| m.mode() & 0o077 == 0);
        Ok(Local { bytes, private })
    }

    fn package(&self, name: &str) -> Result<LocalPackage> {
        let path = self.0.join(name);
        let shown = path.display().to_string();
        let refuse = |why: &str| {
            Error::new(ErrorKind::InvalidDropIn, format!("{shown}: {why}")).detail("file", &shown)
        };
        if !std::fs::symlink_metadata(&path).map_err(|e| refuse("cannot be read").source(e))?.is_file() {
            return Err(refuse("is not a regular file"));
        }
        let file = std::fs::File::open(&path).map_err(|e| refuse("cannot be read").source(e))?;
        package_in(shown.clone(), file)
    }

    fn tree(&self, name: &str) -> Result<Vec<Leaf>> {
        let mut leaves = Vec::new();
        self.gather(Path::new(name), Path::new(""), &mut leaves)?;
        leaves.sort_by(|a: &Leaf, b| a.path.cmp(&b.path));
        Ok(leaves)
    }
}

impl Directory<'_> {
    fn gather(&self, tree: &Path, below: &Path, leaves: &mut Vec<Leaf>) -> Result<()> {
        let dir = self.0.join(tree).join(below);
        let refuse = |message: &str| {
            Error::new(ErrorKind::InvalidDropIn, format!("{}: {message}", dir.display()))
                .detail("file", dir.display())
        };
        if below.components().count() > MAX_DEPTH {
            return Err(refuse("is nested too deeply"));
        }
        for entry in std::fs::read_dir(&dir).map_err(|e| refuse("cannot be listed").source(e))? {
            let entry = entry.map_err(|e| refuse("cannot be listed").source(e))?;
            let below = below.join(entry.file_name());
            let path = below.to_str().ok_or_else(|| refuse("has a name that is not UTF-8"))?.to_owned();
            let file_type = entry.file_type().map_err(|e| refuse("cannot be read").source(e))?;
            let kind = if file_type.is_dir() {
                self.gather(tree, &below, leaves)?;
                LeafKind::Directory
            } else if file_type.is_symlink() {
                let target =
                    std::fs::read_link(entry.path()).map_err(|e| refuse("cannot be read").source(e))?;
                LeafKind::Link(target.to_string_lossy().into_owned())
            } else {
                let name = tree.join(&below);
                let contents = self.file(name.to_str().unwrap_or_default())?;
                let executable = entry.metadata().is_ok_and(|m| m.mode() & 0o111 != 0);
                LeafKind::File { contents, executable }
            };
            leaves.push(Leaf { path, kind });
            if leaves.len() > MAX_LEAVES {
                return Err(refuse(&format!("the tree has more than {MAX_LEAVES} entries")));
            }
        }
        Ok(())
    }
}

fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let refuse = |message: &str| {
        Error::new(ErrorKind::InvalidDropIn, format!("{}: {message}", path.display()))
            .detail("file", path.display())
    };
    let meta = std::fs::metadata(path).map_err(|e| refuse("cannot be read").source(e))?;
    if !meta.is_file() {
        return Err(refuse("is not a regular file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|f| f.take(limit + 1).read_to_end(&mut bytes))
        .map_err(|e| refuse("cannot be read").source(e))?;
    if bytes.len() as u64 > limit {
        return Err(refuse(&format!("has more than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
