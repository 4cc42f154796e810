//! verify: whether the bound images of all deployments are as they were published, and making them so again.

use crate::bound::{self, Checker, Depth, Doomed, Store};
use crate::engine::pipeline::Job;
use crate::engine::steps::{bind, prefetch};
use crate::engine::unavailable::now;
use crate::model::bound::{BoundImage, BoundSet, Mode};
use crate::model::job::{JobResult, Step};
use crate::model::request::BoundName;
use crate::model::verified::{Checked, Damage, Outcome, Part, Verified};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::store::snapshot::Entry;
use std::collections::BTreeSet;

/// Bytes between two reports of progress.
const REPORT: u64 = 4 << 20;

/// One image and what was found of it.
type Found = (BoundImage, Vec<Damage>);

/// Checks every bound image of every deployment against its digest, and repairs what is damaged.
pub async fn verify(job: &Job<'_>) -> Result<JobResult> {
    let store = job.env.bound_store()?;
    let images = everything(job, &store)?;
    let (checker, mut found) =
        job.cx.step(Step::VerifyContent, look(job, &store, images, Depth::Content)).await?;
    store.note(&found, now())?;
    let wrong: Vec<usize> = (0..found.len()).filter(|at| !found[*at].1.is_empty()).collect();
    let mut verified = report(&found);
    if wrong.is_empty() && !job.options.dry_run {
        publish(job, &store).map_err(|why| Error::new(ErrorKind::BoundImageFailed, why))?;
    }
    if !wrong.is_empty() && !job.options.dry_run {
        let before = found.clone();
        repair(job, &store, &checker, &mut found, &mut verified, Depth::Content).await?;
        for ((was, is), checked) in before.iter().zip(&found).zip(&mut verified.images) {
            checked.outcome = outcome(&is.1);
            if !was.1.is_empty() && is.1.is_empty() {
                (checked.outcome, checked.damage) = (Outcome::Repaired, was.1.clone());
            }
        }
        store.note(&found, now())?;
    }
    verified.images.sort_by(|a, b| (&a.reference, &a.digest).cmp(&(&b.reference, &b.digest)));
    conclude(job, &found, verified)
}

/// Gives up images of this set that are there and obviously damaged, for the pull that follows, and fetches what other
/// deployments lose by that.
///
/// It looks for what a power cut leaves: documents that are empty, layers that are gone. Reading everything is left to
/// [`verify`].
pub async fn renew(job: &Job<'_>, store: &Store, set: &BoundSet) -> Result<()> {
    let mut checker = store.checker(Depth::Presence)?;
    let (mut found, mut damaged) = (Vec::new(), false);
    for image in &set.images {
        if checker.knows(image) {
            let damage = checker.check(image, &mut |_| Ok(()))?;
            damaged |= !damage.is_empty();
            found.push((image.clone(), damage));
        }
    }
    if !damaged {
        return Ok(());
    }
    for image in everything(job, store)? {
        if checker.knows(&image) && !found.iter().any(|(known, _)| same(known, &image)) {
            let damage = checker.check(&image, &mut |_| Ok(()))?;
            found.push((image, damage));
        }
    }
    for (image, damage) in &found {
        let name = &image.spec.reference.name;
        damage.iter().for_each(|damage| job.cx.message(format!("{name} is fetched again: {damage}")));
    }
    let mut verified = report(&found);
    repair(job, store, &checker, &mut found, &mut verified, Depth::Presence).await
}

/// Fetches what is missing of the images that deployments have: all of them, or one.
pub async fn pull(job: &Job<'_>, only: Option<BoundName>) -> Result<JobResult> {
    let store = job.env.bound_store()?;
    let mut images = wanted(job)?;
    let all = only.is_none();
    if let Some(only) = only {
        images.retain(|i| i.spec.reference == only.reference && i.digest == only.digest);
        if images.is_empty() {
            let why = format!("no deployment has the bound image {} any more", only.reference);
            return Err(Error::new(ErrorKind::WrongState, why).hint("see: osctl bound list"));
        }
    }
    let mut missing = Vec::new();
    for image in images {
        if !store.has(&image)? {
            missing.push(image);
        }
    }
    let mut notes: Vec<String> = missing.iter().map(|i| i.spec.reference.name.clone()).collect();
    if job.options.dry_run && !missing.is_empty() {
        let summary = format!("Would fetch {}.", counted(missing.len()));
        return Ok(JobResult { changed: true, summary, notes, ..JobResult::default() });
    }
    let mut result = JobResult { summary: "All bound images are there.".into(), ..JobResult::default() };
    if !missing.is_empty() {
        result.summary = format!("Fetched {}.", counted(missing.len()));
        result.changed = true;
        // Whoever asks for an image wants it: here one of mode prefetch that cannot be had is a failure like any other.
        missing.iter_mut().for_each(|image| image.spec.mode = Mode::Bind);
        let set = BoundSet { images: missing };
        job.cx.step(Step::BindPull, bound::pull_all(job.cx, &store, &set, &bind::fetching(job)?)).await?;
        notes.extend(publish(job, &store).err());
        crate::pull::forget_spool(&job.env.layout.bound_spool())?;
    }
    if all && !job.options.dry_run {
        // Those that not even a digest is known of, and what is noted about them.
        let later = prefetch::fill(job).await?;
        if later.changed {
            result.changed = true;
            notes.push(later.summary);
        }
    }
    Ok(JobResult { notes, ..result })
}

fn counted(n: usize) -> String {
    if n == 1 { "1 bound image".into() } else { format!("{n} bound images") }
}

fn same(a: &BoundImage, b: &BoundImage) -> bool {
    a.spec.reference.repository() == b.spec.reference.repository() && a.digest == b.digest
}

/// The bound images of all deployments, each once, those of the deployment that runs first.
fn wanted(job: &Job<'_>) -> Result<Vec<BoundImage>> {
    let journal = job.env.journal()?;
    let runs = job.before.runs().map(|e| e.deployment.id.as_str());
    let mut entries: Vec<&Entry> = job.before.entries.iter().collect();
    entries.sort_by_key(|e| Some(e.deployment.id.as_str()) != runs);
    let mut images: Vec<BoundImage> = Vec::new();
    for entry in entries {
        let Some(key) = &entry.origin.bound_set else { continue };
        let set = bound::recorded(journal.dir(), key)?.ok_or_else(|| {
            let why = format!("the record of the bound images of {} is missing", entry.deployment.id);
            Error::new(ErrorKind::Corrupt, why).hint("write it anew with: osctl reconcile")
        })?;
        for image in set.images {
            match images
                .iter_mut()
                .find(|i| i.spec.reference == image.spec.reference && i.digest == image.digest)
            {
                Some(known) if image.spec.mode == Mode::Bind => known.spec.mode = Mode::Bind,
                Some(_) => {}
                None => images.push(image),
            }
        }
    }
    Ok(images)
}

/// The same, and what containers and images of the administrator stand on, for as long as they do.
fn everything(job: &Job<'_>, store: &Store) -> Result<Vec<BoundImage>> {
    let mut images = wanted(job)?;
    let used = bound::Own::at(&job.env.layout.config_root).uses(store.graph_root())?;
    let more: Vec<_> = used.images.into_iter().filter(|u| !images.iter().any(|i| same(i, u))).collect();
    images.extend(more);
    Ok(images)
}

/// Looks at the content of these images.
async fn look(
    job: &Job<'_>,
    store: &Store,
    images: Vec<BoundImage>,
    depth: Depth,
) -> Result<(Checker, Vec<Found>)> {
    let mut checker = store.checker(depth)?;
    let cx = job.cx.clone();
    let work = move || -> Result<(Checker, Vec<Found>)> {
        let all = checker.bytes(images.iter());
        let (mut done, mut reported) = (0, 0);
        let count = u32::try_from(images.len()).unwrap_or(u32::MAX);
        let mut found = Vec::new();
        for (at, image) in images.into_iter().enumerate() {
            cx.checkpoint()?;
            cx.items(u32::try_from(at).unwrap_or(u32::MAX), count, &image.spec.reference.name);
            let damage = checker.check(&image, &mut |bytes| {
                done += bytes;
                if done - reported >= REPORT {
                    reported = done;
                    cx.bytes(done.min(all), all);
                }
                cx.checkpoint()
            })?;
            found.push((image, damage));
        }
        cx.items(count, count, "");
        for layer in checker.weak() {
            cx.message(format!(
                "the files of layer {layer} were archived as sparse: they are checked by CRC-64, and not by its digest"
            ));
        }
        Ok((checker, found))
    };
    tokio::task::spawn_blocking(work).await.doing("checking the bound images")?
}

fn outcome(damage: &[Damage]) -> Outcome {
    match damage {
        [] => Outcome::Whole,
        all if all.iter().any(|d| d.part == Part::Image) => Outcome::Missing,
        _ => Outcome::Damaged,
    }
}

fn report(found: &[Found]) -> Verified {
    let one = |(image, damage): &Found| Checked {
        reference: image.spec.reference.name.clone(),
        digest: image.digest.clone(),
        outcome: outcome(damage),
        damage: damage.clone(),
        failure: None,
    };
    Verified { images: found.iter().map(one).collect() }
}

/// Writes damaged images anew, from their registries.
///
/// Images that share a damaged layer go together, and stay together where one of them cannot be fetched: a damaged image
/// may still run, one that is gone does not. What does not depend on it is repaired all the same.
async fn repair(
    job: &Job<'_>,
    store: &Store,
    checker: &Checker,
    found: &mut [Found],
    verified: &mut Verified,
    depth: Depth,
) -> Result<()> {
    let mut doomed = Doomed::new();
    for (members, group) in groups(checker, found) {
        match available(job, store, found, &group).await {
            Ok(()) => doomed.extend(group),
            Err(error) if error.kind == ErrorKind::Cancelled => return Err(error),
            Err(error) => {
                for at in members {
                    verified.images[at].failure = Some(error.chain());
                }
            }
        }
    }
    let anew: Vec<usize> = (0..found.len())
        .filter(|at| {
            let (image, damage) = &found[*at];
            Store::is_doomed(image, &doomed) || (!damage.is_empty() && !checker.knows(image))
        })
        .collect();
    if anew.is_empty() {
        return Ok(());
    }
    let names = store.short_names()?;
    job.cx
        .step(Step::VerifyForget, async {
            let own = bound::Own::lock(job.cx, &job.env.layout.config_root).await?;
            store.forget(job.cx, &doomed, &own).await
        })
        .await?;
    job.cx
        .step(Step::VerifyRepair, async {
            let images: Vec<BoundImage> = anew.iter().map(|at| found[*at].0.clone()).collect();
            let mut set = BoundSet { images: images.clone() };
            // One that cannot be had is no reason to stop: what became of each is said.
            set.images.iter_mut().for_each(|image| image.spec.mode = Mode::Prefetch);
            for error in bound::pull_all(job.cx, store, &set, &bind::fetching(job)?).await? {
                let name = error.details.get("image");
                for at in anew.iter().filter(|at| Some(&found[**at].0.spec.reference.name) == name) {
                    verified.images[*at].failure = Some(error.chain());
                }
            }
            store.name_again(&names)?;
            let (_, again) = look(job, store, images, depth).await?;
            for (at, (_, damage)) in anew.iter().zip(again) {
                found[*at].1 = damage;
            }
            Ok(())
        })
        .await?;
    publish(job, store).map_err(|why| Error::new(ErrorKind::BoundImageFailed, why))
}

/// The damaged images that depend on each other, with all that goes with them.
fn groups(checker: &Checker, found: &[Found]) -> Vec<(Vec<usize>, Doomed)> {
    let mut left: BTreeSet<usize> =
        (0..found.len()).filter(|at| !found[*at].1.is_empty() && checker.knows(&found[*at].0)).collect();
    let mut groups = Vec::new();
    while let Some(first) = left.pop_first() {
        let mut members = vec![first];
        let group = loop {
            let damaged: Vec<_> = members.iter().map(|at| (&found[*at].0, found[*at].1.as_slice())).collect();
            let doomed = Store::doomed(checker, &damaged);
            let more: Vec<usize> =
                left.iter().copied().filter(|at| Store::is_doomed(&found[*at].0, &doomed)).collect();
            if more.is_empty() {
                break doomed;
            }
            left.retain(|at| !more.contains(at));
            members.extend(more);
        };
        groups.push((members, group));
    }
    groups
}

/// Whether everything that would go can be fetched again.
async fn available(job: &Job<'_>, store: &Store, found: &[Found], doomed: &Doomed) -> Result<()> {
    let opts = bind::fetching(job)?;
    for (image, _) in found.iter().filter(|(image, _)| Store::is_doomed(image, doomed)) {
        store.available(job.cx, image, &opts).await.map_err(|error| {
            let why = format!("{} cannot be fetched, and nothing was removed", image.spec.reference.name);
            Error::new(error.kind, why).source(error)
        })?;
    }
    Ok(())
}

/// Makes the views of all deployments what the store is now. Returns why that failed.
fn publish(job: &Job<'_>, store: &Store) -> Result<(), String> {
    let make = || -> Result<()> {
        let journal = job.env.journal()?;
        let kept = bound::Own::at(&job.env.layout.config_root).uses(store.graph_root())?;
        for key in job.before.entries.iter().filter_map(|e| e.origin.bound_set.as_deref()) {
            if let Some(set) = bound::recorded(journal.dir(), key)? {
                store.publish(key, &set, &kept)?;
            }
        }
        Ok(())
    };
    make().map_err(|error| format!("podman does not find all of them yet: {}", error.chain()))
}

/// What the job comes to. Something that stays damaged is a failure; a prefetch image that is missing is none.
fn conclude(job: &Job<'_>, found: &[Found], verified: Verified) -> Result<JobResult> {
    let stays = |(image, damage): &&Found| match outcome(damage) {
        Outcome::Whole | Outcome::Repaired => false,
        Outcome::Damaged => true,
        Outcome::Missing => image.spec.mode == Mode::Bind,
    };
    let stay: Vec<&str> = found.iter().filter(stays).map(|(i, _)| i.spec.reference.name.as_str()).collect();
    let result = JobResult {
        changed: verified.count(Outcome::Repaired) > 0,
        summary: verified.summary(),
        notes: verified.lines(),
        verified: Some(Box::new(verified)),
        ..JobResult::default()
    };
    if stay.is_empty() {
        // Where something is left to fetch, so is what was fetched of it.
        crate::pull::forget_spool(&job.env.layout.bound_spool())?;
        return Ok(result);
    }
    let (kind, what, hint) = if job.options.dry_run {
        (
            ErrorKind::Corrupt,
            "damaged or missing; nothing was changed",
            "repair them with: osctl bound verify",
        )
    } else {
        let hint = "when the registries can be reached, try again: osctl bound verify";
        (ErrorKind::BoundImageFailed, "still damaged or missing; what could be repaired is repaired", hint)
    };
    let are = if stay.len() == 1 { "is" } else { "are" };
    let why = format!("{} {are} {what}: {}", counted(stay.len()), stay.join(", "));
    job.cx.found(result);
    Err(Error::new(kind, why).hint(hint).detail("images", stay.join(" ")))
}
