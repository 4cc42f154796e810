//! Which set a deployment was staged with, on disk.

use crate::model::bound::{BoundImage, BoundSet, BoundSpec};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::fs;
use cap_std_ext::cap_std::fs::Dir;

const DIR: &str = "bound";
const VERSION: u32 = 1;

/// The file; keys that a later version adds are ignored unless it raises the version.
#[derive(serde::Serialize, serde::Deserialize)]
struct Record {
    version: u32,
    images: Vec<BoundImage>,
    /// Of mode `prefetch`, and not even resolved when the deployment was staged. They may be among the images by now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    later: Vec<BoundSpec>,
}

/// Records the set of a deployment durably, with those images of mode `prefetch` whose digest nobody could say when it was
/// staged: what came of them later is in the set, and no reason for another deployment.
pub fn record(state: &Dir, key: &str, set: &BoundSet, later: &[BoundSpec]) -> Result<()> {
    let path = path(key)?;
    let record = Record { version: VERSION, images: set.images.clone(), later: later.to_vec() };
    let text = serde_json::to_vec_pretty(&record).doing("encoding the set of bound images")?;
    fs::write_atomic(state, path, &text, 0o644)
}

/// The set that was recorded for a deployment; `None` if there is none. A damaged record is `Corrupt`.
pub fn recorded(state: &Dir, key: &str) -> Result<Option<BoundSet>> {
    Ok(recorded_whole(state, key)?.map(|(set, _)| set))
}

/// The same with what could not be resolved when the deployment was staged.
pub fn recorded_whole(state: &Dir, key: &str) -> Result<Option<(BoundSet, Vec<BoundSpec>)>> {
    let path = path(key)?;
    let Some(bytes) = fs::read_optional(state, &path)? else { return Ok(None) };
    let damaged = |why: String| {
        Error::new(ErrorKind::Corrupt, format!("the record of bound images {path} {why}"))
            .hint("stage again to write it anew: osctl upgrade")
    };
    let record: Record =
        serde_json::from_slice(&bytes).map_err(|e| damaged("is damaged".into()).source(e))?;
    if record.version > VERSION {
        return Err(damaged(format!("was written by a newer osctl (version {})", record.version)));
    }
    Ok(Some((BoundSet { images: record.images }, record.later)))
}

/// Removes the records of all commits but these and returns the commits whose records are gone.
pub fn prune_records(state: &Dir, keep_commits: &[&str]) -> Result<Vec<String>> {
    let mut gone = Vec::new();
    let entries = match state.read_dir(DIR) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(gone),
        Err(e) => return Err(e).doing("listing the records of bound images"),
    };
    for entry in entries {
        let name = entry.doing("listing the records of bound images")?.file_name();
        // Other files are not ours to remove.
        let Some(commit) = name.to_str().and_then(|n| n.strip_suffix(".json")) else { continue };
        if path(commit).is_ok() && !keep_commits.contains(&commit) {
            fs::remove_durably(state, path(commit)?)?;
            gone.push(commit.to_owned());
        }
    }
    gone.sort();
    Ok(gone)
}

fn path(commit: &str) -> Result<String> {
    if commit.len() == 64 && commit.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(format!("{DIR}/{commit}.json"))
    } else {
        Err(Error::new(ErrorKind::InvalidArgument, format!("{commit:?} is not a commit")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::bound::Mode;
    use crate::model::image::Digest;
    use cap_std_ext::cap_std::ambient_authority;

    #[test]
    fn records_survive_a_round_trip_and_go_with_their_commits() {
        let temp = tempfile::tempdir().unwrap();
        let state = Dir::open_ambient_dir(temp.path(), ambient_authority()).unwrap();
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let spec = BoundSpec::new("quay.io/x/app:1".parse().unwrap(), "/etc/osctl/bound-images.d/app.toml");
        let set = BoundSet::new(vec![BoundImage { spec, digest: Digest::of(b"1") }]).unwrap();
        assert_eq!(recorded(&state, &a).unwrap(), None);
        record(&state, &a, &set, &[]).unwrap();
        let later = [BoundSpec { mode: Mode::Prefetch, ..set.images[0].spec.clone() }];
        record(&state, &b, &BoundSet::default(), &later).unwrap();
        assert_eq!(recorded_whole(&state, &b).unwrap(), Some((BoundSet::default(), later.to_vec())));
        assert_eq!(recorded(&state, &a).unwrap().as_ref(), Some(&set));
        state.write("bound/README", "not ours").unwrap();
        assert_eq!(prune_records(&state, &[&a]).unwrap(), std::slice::from_ref(&b));
        assert_eq!(recorded(&state, &b).unwrap(), None);
        assert_eq!(recorded(&state, &a).unwrap(), Some(set));
        state.write(format!("bound/{a}.json"), "{").unwrap();
        assert_eq!(recorded(&state, &a).unwrap_err().kind, ErrorKind::Corrupt);
        assert_eq!(
            record(&state, "../x", &BoundSet::default(), &[]).unwrap_err().kind,
            ErrorKind::InvalidArgument
        );
        assert!(state.exists("bound/README"));
    }
}
