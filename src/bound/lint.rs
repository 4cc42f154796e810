//! Checking bound files and quadlets offline, without root: all files, all errors, nothing printed.
//!
//! Files in the places where osctl and podman look are read as discovery would read them in the image whose root that is.
//! All others are a source tree: there a link may lead to where the file will be installed, and of several files with
//! one name the nearest counts.

use super::discover::{ADMIN, VENDOR, entry};
use super::quadlets::{Asked, PODMAN, Quadlets};
use super::tree::{Directory, base_name, child, follow, is_masked, parent, read, resolved, visible};
use crate::model::bound::{BoundSpec, check_pins, refused};
use crate::model::image::ImageRef;
use crate::model::lint::{LintError, LintFile, LintKind};
use crate::model::quadlet::{Type, Unit};
use crate::model::{Context, Error, ErrorKind, Result};
use cap_std_ext::cap_std::ambient_authority;
use cap_std_ext::cap_std::fs::Dir;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Deeper directories are not looked into.
const MAX_DEPTH: usize = 32;
/// The directory of bound files, wherever it is.
const BOUND: &str = "bound-images.d";

/// Checks a file, or everything below a directory: bound files, quadlet files, their drop-ins, and the Kubernetes YAML
/// that they name.
///
/// Returns them in no order. Fails only if `path` itself cannot be read: everything else is in the report.
pub fn lint(path: &Path) -> Result<Vec<LintFile>> {
    let unreadable = || format!("{} cannot be checked", path.display());
    // A link is what is checked, not what it leads to.
    let meta = std::fs::symlink_metadata(path).kind(ErrorKind::InvalidArgument, unreadable())?;
    let is_dir = meta.is_dir() || std::fs::metadata(path).is_ok_and(|m| m.is_dir());
    let given = match is_dir {
        true => path.to_owned(),
        false => path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned(),
    };
    let real = given.canonicalize().kind(ErrorKind::InvalidArgument, unreadable())?;
    let mut walk = Walk { device: None, dirs: Vec::new(), files: Vec::new() };
    if is_dir {
        walk.descend(&real, 0);
    } else if let Some(name) = path.file_name() {
        walk.files.push(real.join(name));
    }
    // `osctl lint a.toml` shows that name, and `osctl lint dir` what is below it.
    let shown = |file: &Path| match file.strip_prefix(&real) {
        Ok(rest) if is_dir => path.join(rest).display().to_string(),
        Ok(rest) if path.file_name() == Some(rest.as_os_str()) => path.display().to_string(),
        Ok(rest) if given == Path::new(".") => rest.display().to_string(),
        Ok(rest) => given.join(rest).display().to_string(),
        Err(_) => file.display().to_string(),
    };
    let mut installed: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    let mut loose = Vec::new();
    for file in walk.files {
        let Some(text) = file.to_str() else { continue };
        match root_of(text) {
            Some((root, rest)) => installed.entry(root.into()).or_default().push(rest),
            None => loose.push(text.to_owned()),
        }
    }
    // What lies elsewhere in an OS is an example, or another program's.
    let is_os =
        |root: &Path| root.join("usr/lib/os-release").exists() || root.join("etc/os-release").exists();
    let systems: Vec<_> = installed.keys().chain([&real]).filter(|r| is_dir && is_os(r)).cloned().collect();
    loose.retain(|file| !systems.iter().any(|root| Path::new(file).starts_with(root)));
    let mut report = Report { files: BTreeMap::new(), shown: &shown, whole: is_dir };
    for (root, files) in installed {
        let tree = Directory::new(open(&root)?);
        let quadlets = Quadlets::installed(&tree)?;
        Check { report: &mut report, quadlets: &quadlets, tree: &tree, root: &root, strict: false }
            .run(files)?;
    }
    if is_dir && !loose.is_empty() {
        let tree = Directory::new(open(&real)?);
        let dirs = walk.dirs.iter().filter_map(|d| below(d, &real)).collect();
        let quadlets = Quadlets::loose(&tree, dirs, "the source tree");
        let files = loose.iter().filter_map(|f| below(Path::new(f), &real)).collect();
        Check { report: &mut report, quadlets: &quadlets, tree: &tree, root: &real, strict: true }
            .run(files)?;
    } else if let Some(file) = loose.first() {
        // Beside the file; for what is in a directory of links or drop-ins, beside that.
        let inner = real.extension().is_some_and(|e| e == "d");
        let root = if inner { real.parent().unwrap_or(&real) } else { &real };
        let tree = Directory::new(open(root)?);
        let mut dirs = vec!["/".to_owned()];
        dirs.extend(below(&real, root).filter(|d| d != "/"));
        let quadlets = Quadlets::loose(&tree, dirs, "the directory of that file");
        let files = below(Path::new(file), root).into_iter().collect();
        Check { report: &mut report, quadlets: &quadlets, tree: &tree, root, strict: true }.run(files)?;
    }
    Ok(report.files.into_values().collect())
}

fn open(root: &Path) -> Result<Dir> {
    Dir::open_ambient_dir(root, ambient_authority()).doing_with(|| format!("opening {}", root.display()))
}

/// The path as one of a tree with this root.
fn below(path: &Path, root: &Path) -> Option<String> {
    path.strip_prefix(root).ok()?.to_str().map(|rest| format!("/{rest}"))
}

/// The root of the image in which a file is where osctl or podman looks, and its path in there.
fn root_of(file: &str) -> Option<(&str, String)> {
    let places = VENDOR.into_iter().chain([ADMIN]).chain(PODMAN);
    let places = places.flat_map(|p| [p.to_owned(), p.replacen("/etc/", "/usr/etc/", 1)]);
    let at = places.filter_map(|place| file.find(&format!("{place}/"))).min()?;
    let root = if at == 0 { "/" } else { &file[..at] };
    Some((root, visible(file[at..].to_owned())))
}

/// What is to be checked below a directory, without crossing into another file system.
struct Walk {
    device: Option<u64>,
    dirs: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl Walk {
    fn descend(&mut self, dir: &Path, depth: usize) {
        let device = std::fs::metadata(dir).ok().map(|m| m.dev());
        if depth > MAX_DEPTH || device.is_none() || self.device.is_some_and(|d| device != Some(d)) {
            return;
        }
        self.device = device;
        if dir.extension().is_none_or(|e| e != "d") {
            self.dirs.push(dir.to_owned());
        }
        // What cannot be listed holds nothing that can be checked.
        let Ok(entries) = std::fs::read_dir(dir) else { return };
        let mut names: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        names.sort();
        for path in names {
            match std::fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() && path.file_name().is_none_or(|n| n != ".git") => {
                    self.descend(&path, depth + 1);
                }
                Ok(meta) if !meta.is_dir() && kind(&path.to_string_lossy()).is_some() => {
                    self.files.push(path)
                }
                _ => {}
            }
        }
    }
}

/// What a file is by its name and its directory.
fn kind(path: &str) -> Option<LintKind> {
    let (dir, name) = (base_name(parent(path)), base_name(path));
    let types = ["container", "image", "kube", "volume"];
    let suffix = name.rsplit_once('.').map(|(_, suffix)| suffix);
    let of_type = |name: &str| types.iter().any(|t| name == *t || name.ends_with(&format!(".{t}")));
    match suffix {
        _ if dir == BOUND && root_of(path).is_some() => Some(LintKind::Bound),
        // In a source tree, a README is not installed.
        Some("toml" | "container" | "image" | "kube" | "build") if dir == BOUND => Some(LintKind::Bound),
        Some("conf") if dir.strip_suffix(".d").is_some_and(of_type) => Some(LintKind::QuadletDropIn),
        Some("container" | "image" | "kube") if dir != BOUND => Some(LintKind::Quadlet),
        _ => None,
    }
}

struct Report<'a> {
    files: BTreeMap<String, LintFile>,
    shown: &'a dyn Fn(&Path) -> String,
    /// Whether all files were looked at, or just one.
    whole: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Severity {
    Error,
    Warning,
}

/// One tree.
struct Check<'a, 'r> {
    report: &'a mut Report<'r>,
    quadlets: &'a Quadlets<'a>,
    tree: &'a Directory,
    root: &'a Path,
    /// Whether quadlets that nothing here binds must be fit for it: in a source tree the link may be made later.
    strict: bool,
}

impl Check<'_, '_> {
    fn run(&mut self, files: Vec<String>) -> Result<()> {
        let (bound, others): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|f| kind(f).is_none_or(|k| k == LintKind::Bound));
        let mut specs = Vec::new();
        let mut units = BTreeSet::new();
        for file in &bound {
            specs.extend(self.bound(file, &mut units)?);
        }
        for file in &others {
            match kind(file) {
                Some(LintKind::QuadletDropIn) => self.drop_in(file)?,
                _ => self.quadlet(file, self.strict || units.contains(file))?,
            }
        }
        self.pins(&specs);
        for file in bound.iter().filter(|f| f.ends_with(".toml")) {
            self.mismatch(file, &specs)?;
        }
        Ok(())
    }

    /// A file in a `bound-images.d`, or one that is given by name and is nothing else.
    fn bound(&mut self, file: &str, units: &mut BTreeSet<String>) -> Result<Vec<BoundSpec>> {
        self.file(file, LintKind::Bound);
        let (dir, name) = (parent(file), base_name(file));
        let replaced = |dir: &str| {
            Ok::<_, Error>(dir != ADMIN && self.quadlets.tree.entry(&child(ADMIN, name))?.is_some())
        };
        if is_masked(self.tree, file)? || (!self.strict && replaced(dir)?) {
            return Ok(Vec::new());
        }
        if !name.ends_with(".toml") && Type::of_name(name).is_ok() {
            units.extend(self.quadlets.linked(file).ok());
        }
        let asked = entry(self.quadlets, dir, name);
        Ok(self.take(file, asked, Severity::Error))
    }

    fn quadlet(&mut self, file: &str, must: bool) -> Result<()> {
        let Ok(kind) = Type::of_name(base_name(file)) else { return Ok(()) };
        if self.report.whole && self.strict && kind == Type::Image && !self.is_text(file)? {
            return Ok(());
        }
        self.file(file, LintKind::Quadlet);
        // What podman cannot read is wrong in any case.
        let severity = match self.quadlets.unit(file) {
            Ok(_) if !must => Severity::Warning,
            Ok(_) | Err(_) => Severity::Error,
        };
        let asked = self.quadlets.images(file, kind, file);
        self.take(file, asked, severity);
        Ok(())
    }

    /// Whether a file may be a unit: disk images end in `.image`, too.
    fn is_text(&self, file: &str) -> Result<bool> {
        match resolved(self.tree, file)? {
            Some(real) => Ok(std::str::from_utf8(&self.quadlets.tree.bytes(&real)?).is_ok()),
            None => Ok(true),
        }
    }

    fn drop_in(&mut self, file: &str) -> Result<()> {
        self.file(file, LintKind::QuadletDropIn);
        if is_masked(self.tree, file)? {
            return Ok(());
        }
        let path = follow(self.tree, file).and_then(|hops| {
            let text = read(self.tree, &hops.into_iter().next_back().unwrap_or_default(), file)?;
            Unit::parse(&text, file)
        });
        if let Err(error) = path {
            self.blame(file, &error, Severity::Error);
            return Ok(());
        }
        // Given alone, it is checked with the unit that it belongs to, if that is there.
        let dir = parent(file);
        let unit = base_name(dir).strip_suffix(".d").map(|unit| child(parent(dir), unit));
        match unit.filter(|_| !self.report.whole) {
            Some(unit) if self.quadlets.tree.entry(&unit)?.is_some() => self.quadlet(&unit, self.strict),
            _ => Ok(()),
        }
    }

    /// Two files that want different things of one name.
    fn pins(&mut self, specs: &[BoundSpec]) {
        // In a source tree, each directory may be that of another host.
        let mut groups: BTreeMap<&str, Vec<&BoundSpec>> = BTreeMap::new();
        for spec in specs {
            groups.entry(if self.strict { parent(&spec.source) } else { "" }).or_default().push(spec);
        }
        for group in groups.into_values() {
            if let Err(error) = check_pins(group.into_iter()) {
                self.blame("", &error, Severity::Error);
            }
        }
    }

    /// A TOML file and a `.container` of one name that mean different images.
    fn mismatch(&mut self, file: &str, specs: &[BoundSpec]) -> Result<()> {
        let Some(own) = specs.iter().find(|s| s.source == file) else { return Ok(()) };
        let unit = base_name(file).replace(".toml", ".container");
        let Some(unit) = self.quadlets.search(&unit, parent(file))? else { return Ok(()) };
        let Ok(asked) = self.quadlets.images(&unit, Type::Container, &unit) else { return Ok(()) };
        let Some(wanted) = asked.specs.first().map(|s| &s.reference) else { return Ok(()) };
        if same_name(&own.reference, wanted) {
            return Ok(());
        }
        let is_bound = specs.iter().any(|s| same_name(&s.reference, wanted));
        let (severity, rest) = match is_bound || !self.report.whole {
            true => (Severity::Warning, ""),
            // It would start only with a network, which is what binding is to prevent.
            false => (Severity::Error, ", which nothing binds"),
        };
        let path = follow(self.tree, file)?.into_iter().next_back().unwrap_or_default();
        let (_, line) = BoundSpec::from_toml_located(&read(self.tree, &path, file)?, file)?;
        let shown = self.shown(&unit);
        let why = format!("binds {}, but {shown} runs {}{rest}", own.reference.name, wanted.name);
        let error = refused(file, Some(line), why)
            .detail("key", "image")
            .hint("write the same reference in both, or give the TOML file another name");
        self.blame(file, &error, severity);
        Ok(())
    }

    /// Puts what a file asks for, or its error, into the report.
    fn take(&mut self, file: &str, asked: Result<Asked>, severity: Severity) -> Vec<BoundSpec> {
        let asked = match asked {
            Ok(asked) => asked,
            Err(error) => {
                self.blame(file, &error, severity);
                return Vec::new();
            }
        };
        for (yaml, images) in asked.yaml {
            self.file(&yaml, LintKind::Kubernetes).images = distinct(images);
        }
        for warning in &asked.warnings {
            self.blame(file, warning, Severity::Warning);
        }
        let images = asked.specs.iter().map(|s| s.reference.name.clone());
        let images = distinct(images);
        if let Some(entry) = self.report.files.get_mut(&self.shown(file)) {
            entry.images = images;
        }
        asked.specs
    }

    /// Reports an error at the file that it names.
    fn blame(&mut self, file: &str, error: &Error, severity: Severity) {
        let culprit = error.details.get("file").map_or(file, String::as_str);
        let kind = match kind(culprit) {
            Some(kind) => kind,
            None if culprit.ends_with(".volume") => LintKind::Quadlet,
            None if culprit == file => LintKind::Bound,
            None => LintKind::Kubernetes,
        };
        let finding = LintError::from(error);
        let entry = self.file(culprit, kind);
        if entry.errors.contains(&finding) {
            return;
        }
        match severity {
            Severity::Error => {
                entry.warnings.retain(|w| *w != finding);
                entry.errors.push(finding);
            }
            Severity::Warning if !entry.warnings.contains(&finding) => entry.warnings.push(finding),
            Severity::Warning => {}
        }
    }

    fn shown(&self, file: &str) -> String {
        (self.report.shown)(&self.root.join(self.tree.place(file)))
    }

    /// The file's entry in the report.
    fn file(&mut self, file: &str, kind: LintKind) -> &mut LintFile {
        let shown = self.shown(file);
        self.report.files.entry(shown.clone()).or_insert_with(|| LintFile::new(shown, kind))
    }
}

fn distinct(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    names.into_iter().filter(|name| seen.insert(name.clone())).collect()
}

/// Whether two references mean one name; a digest that only one of them has does not matter.
fn same_name(a: &ImageRef, b: &ImageRef) -> bool {
    let name = |r: &ImageRef| r.name.split('@').next().unwrap_or_default().to_owned();
    name(a) == name(b) && a.digest().zip(b.digest()).is_none_or(|(a, b)| a == b)
}

#[cfg(test)]
mod tests;
