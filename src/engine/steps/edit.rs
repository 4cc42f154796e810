//! A drop-in that the daemon writes: its new text travels with the job, and is on disk when the deployment is there.
//!
//! ```text
//! read ──► new text ──► derive … preflight ──► still as read? ──► intent with the text ──► publish ──► write
//!          a failure leaves the file as it is               a crash from here on: whoever settles the intent writes
//! ```

use crate::derive::read;
use crate::engine::journal::Edited;
use crate::engine::pipeline::Job;
use crate::engine::steps::permit;
use crate::model::deviation::is_dropin;
use crate::model::edit::{self, Edit, Facts, NAME, PATH};
use crate::model::image::Digest;
use crate::model::job::JobResult;
use crate::model::kargs::Owned;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::store::snapshot::Entry;
use crate::store::tree::CommitTree;
use crate::sys::fs::write_atomic;
use cap_std_ext::cap_std::fs::{Dir, DirBuilder, DirBuilderExt, PermissionsExt};

/// The mode of a new file. One that is there keeps its own.
const MODE: u32 = 0o644;

/// Reads what is declared, and makes the text that declares what is asked for; `None` if nothing is to be changed.
pub async fn prepare(job: &Job<'_>, asked: &Edit) -> Result<Option<Edited>> {
    permit::owned(&job.view())?;
    let Some(next) = job.before.next() else {
        return Err(Error::new(ErrorKind::WrongState, "there is no deployment yet; nothing was changed")
            .hint("make the first one: osctl rebase IMAGE"));
    };
    let config = job.env.config_root()?;
    make_room(&config)?;
    let text = read::host_text(&config, NAME)?;
    let own = edit::declared(text.as_deref().unwrap_or_default())?;
    let (base, fresh) = (next.deployment.base_checksum.clone(), text.is_none());
    let work = job.store.run(job.cx, move |s, _| {
        let tree = CommitTree::open(&s.repo(), &base)?;
        let vendor = format!("{}/{NAME}", read::VENDOR_DIR);
        if fresh && tree.lookup(&vendor)?.is_some() {
            let why =
                format!("the image has a drop-in {vendor}, which {PATH} would replace; nothing was changed");
            return Err(Error::new(ErrorKind::Conflict, why).hint("declare it in a drop-in of another name"));
        }
        read::read(&config, Some(&tree))
    });
    let all = work.await?;
    let present = present(next)?;
    let planned = edit::plan(asked, &Facts { own: &own, all: &all, present: &present })?;
    if planned.changes.is_empty() {
        return Ok(None);
    }
    let after = edit::rewrite(text.as_deref(), &planned.changes)?;
    let changes = planned.changes.iter().map(ToString::to_string);
    let notes = changes.chain(planned.notes).collect();
    Ok(Some(Edited {
        name: NAME.to_owned(),
        before: text.map(|text| Digest::of(text.as_bytes())),
        after,
        notes,
    }))
}

/// The arguments of an entry that are there without drop-ins, those among them that a drop-in has deleted.
fn present(next: &Entry) -> Result<Vec<String>> {
    let owned = next.origin.kargs.as_deref().map(Owned::from_json).transpose()?.unwrap_or_default();
    let kargs = next.deployment.derivation.kargs.iter().filter(|k| !is_dropin(&k.owner));
    let deleted = owned.deleted.into_iter().map(|gone| gone.arg);
    Ok(kargs.map(|k| k.arg.clone()).chain(deleted).collect())
}

/// Makes the directory, and fails where it could not be written to later.
pub(super) fn make_room(config: &Dir) -> Result<()> {
    let doing = || format!("preparing {}", read::HOST_DIR);
    let mut builder = DirBuilder::new();
    // Whatever the umask says, a directory that group or others can write to would be refused.
    builder.recursive(true).mode(0o755);
    let dir = read::HOST_DIR.trim_start_matches('/');
    config.create_dir_with(dir, &builder).doing_with(doing)?;
    let dir = config.open_dir(dir).doing_with(doing)?;
    rustix::fs::accessat(&dir, ".", rustix::fs::Access::WRITE_OK, rustix::fs::AtFlags::EACCESS).map_err(|e| {
        Error::new(
            ErrorKind::ReadOnly,
            format!("{} cannot be written to; nothing was changed", read::HOST_DIR),
        )
        .source(std::io::Error::from(e))
    })
}

/// Fails with `Conflict` if somebody else has written the file since it was read.
pub fn still(config: &Dir, edited: &Edited) -> Result<()> {
    if current(config, edited)? == edited.before {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Conflict,
        format!("{} was changed while the job ran; nothing was staged", edited.path()),
    )
    .hint("run the same command again")
    .detail("file", edited.path()))
}

/// Writes the file, if that is still to be done. What somebody else has written in the meantime stays.
pub fn write(config: &Dir, edited: &Edited) -> Result<()> {
    let now = match current(config, edited) {
        // One that nobody trusts is not the one that was read either.
        Err(error) if error.kind == ErrorKind::InvalidDropIn => {
            tracing::warn!(
                file = edited.path(),
                error = error.chain(),
                "the file stays as somebody else has left it"
            );
            return Ok(());
        }
        read => read?,
    };
    if now == Some(Digest::of(edited.after.as_bytes())) {
        return Ok(());
    }
    if now != edited.before {
        tracing::warn!(
            file = edited.path(),
            "the file stays as somebody else has left it; status shows what differs"
        );
        return Ok(());
    }
    let path = edited.path();
    let path = path.trim_start_matches('/');
    let mode = config.metadata(path).map_or(MODE, |meta| meta.permissions().mode() & 0o7777);
    write_atomic(config, path, edited.after.as_bytes(), mode)
}

/// Writes the file where the deployment of the next boot is what it makes of it already.
pub fn alone(job: &Job<'_>, mut result: JobResult) -> Result<JobResult> {
    let Some(edited) = job.edited.as_ref().filter(|_| !job.options.dry_run) else { return Ok(result) };
    let config = job.env.config_root()?;
    still(&config, edited)?;
    job.cx.commit()?;
    write(&config, edited)?;
    result.changed = true;
    result.summary = format!("{} is written; the next boot needs no other deployment for it.", edited.path());
    result.notes.splice(0..0, edited.notes.clone());
    Ok(result)
}

fn current(config: &Dir, edited: &Edited) -> Result<Option<Digest>> {
    Ok(read::host_text(config, &edited.name)?.map(|text| Digest::of(text.as_bytes())))
}
