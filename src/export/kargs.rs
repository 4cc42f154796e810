//! The kernel arguments of drop-ins: they are no part of a commit's tree, and have to be in an image.

use super::diff::{Change, Changes};
use crate::model::kargs::{self, BUILT_APPEND, BUILT_DELETE};
use crate::model::manifest::{Karg, Manifest};
use crate::model::{Context, ErrorKind, Result};
use crate::store::tree::CommitTree;

/// A kargs.d file is a handful of lines.
const LIMIT: u64 = 1 << 20;

/// Adds the files that say what the drop-ins append and delete, over those of a base that was built so itself.
pub fn add(changes: &mut Changes, derived: &CommitTree, manifest: &Manifest) -> Result<()> {
    for (path, list, now, undone) in [
        (BUILT_APPEND, "kargs", &manifest.kargs_append, &manifest.kargs_delete),
        (BUILT_DELETE, "delete", &manifest.kargs_delete, &manifest.kargs_append),
    ] {
        let before = read(derived, path)?;
        let is_in = |list: &[Karg], arg: &String| list.iter().any(|k| k.arg == *arg);
        let mut args: Vec<String> = before.iter().filter(|arg| !is_in(undone, arg)).cloned().collect();
        for karg in now {
            if !args.contains(&karg.arg) {
                args.push(karg.arg.clone());
            }
        }
        if args != before {
            changes.insert(path.trim_start_matches('/').to_owned(), written(list, &args));
        }
    }
    Ok(())
}

fn written(list: &str, args: &[String]) -> Change {
    match args {
        [] => Change::Removed,
        args => Change::Written(kargs::built(list, args).into_bytes()),
    }
}

fn read(tree: &CommitTree, path: &str) -> Result<Vec<String>> {
    let Some(bytes) = tree.read(path, LIMIT)? else { return Ok(Vec::new()) };
    let text = String::from_utf8(bytes).kind(ErrorKind::InvalidArgument, format!("{path} is not UTF-8"))?;
    let args = kargs::parse_vendor(path, &text, std::env::consts::ARCH)?;
    Ok(args.into_iter().map(|karg| karg.arg).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::testing::{Base, Scratch, karg};
    use ostree_ext::ostree::RepoMode;

    #[test]
    fn an_image_on_an_image_has_the_arguments_of_both() {
        let text =
            |list, args: &[&str]| kargs::built(list, &args.iter().map(|a| a.to_string()).collect::<Vec<_>>());
        let files = [(BUILT_APPEND, text("kargs", &["a", "b"])), (BUILT_DELETE, text("delete", &["x", "y"]))];
        let entries =
            files.iter().map(|(path, text)| (path.trim_start_matches('/'), Base::File(0o644, text)));
        let scratch = Scratch::with(RepoMode::Bare, entries.collect::<Vec<_>>());
        let tree = CommitTree::open(&scratch.repo, &scratch.base).unwrap();
        let manifest = |append: &[&str], delete: &[&str]| {
            let all = |args: &[&str]| args.iter().map(|a| karg(a)).collect();
            Manifest { kargs_append: all(append), kargs_delete: all(delete), ..Manifest::default() }
        };
        let of = |append: &[&str], delete: &[&str]| {
            let mut changes = Changes::new();
            add(&mut changes, &tree, &manifest(append, delete)).unwrap();
            let text = |change: &Change| match change {
                Change::Written(bytes) => {
                    String::from_utf8(bytes.clone()).unwrap().lines().last().unwrap().to_owned()
                }
                other => format!("{other:?}"),
            };
            changes.values().map(text).collect::<Vec<_>>()
        };
        assert!(of(&["a"], &["x"]).is_empty(), "nothing new");
        assert_eq!(of(&["c"], &[]), [r#"kargs = ["a", "b", "c"]"#]);
        assert_eq!(of(&["x"], &["a"]), [r#"kargs = ["b", "x"]"#, r#"delete = ["y", "a"]"#]);
        assert_eq!(of(&[], &["a", "b", "x"]), ["Removed", r#"delete = ["x", "y", "a", "b"]"#]);
    }
}
