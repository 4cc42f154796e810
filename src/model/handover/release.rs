//! A deployment of ours to an origin of rpm-ostree or bootc.

use super::{Handover, Item, Key, Tool};
use crate::model::bound::BoundSet;
use crate::model::deviation::{Asked, is_dropin};
use crate::model::image::ImageRef;
use crate::model::packages::LOCAL;
use crate::model::status::{Derivation, PackageRequest};

/// Where images bind other images in bootc's way.
const BOOTC_BOUND: &str = "/usr/lib/bootc/bound-images.d/";
/// What rpm-ostree reads in an origin, and we write.
const REQUESTED: (&str, &str) = ("packages", "requested");
const REMOVE: (&str, &str) = ("overrides", "remove");

/// What is to be handed back.
#[derive(Debug, Clone, Copy)]
pub struct Releasable<'a> {
    /// The image that is tracked.
    pub image: Option<&'a ImageRef>,
    /// What was derived.
    pub derivation: &'a Derivation,
    /// What is bound.
    pub bound: &'a BoundSet,
    /// Whether packages are rpm's.
    pub rpm: bool,
    /// Whether the image has the program.
    pub has_tool: bool,
}

/// What handing it back to this tool comes to.
pub fn release(tool: Tool, from: &Releasable<'_>) -> Handover {
    let mut handover = Handover::new(tool.into(), from.image.cloned());
    packages(&mut handover, tool, from);
    let d = from.derivation;
    let mut lost = |kind: &str, name: &str, owner: &str| {
        let why = format!("{owner} declares it, and {tool} has no such files; build it into the image");
        handover.lost.push(Item::new(format!("{kind} {name}"), why));
    };
    d.files.iter().for_each(|file| lost("path", &file.path, &file.owner));
    d.units.iter().for_each(|unit| lost("unit", &unit.name, &unit.owner));
    d.users.iter().for_each(|user| lost("user", &user.name, &user.owner));
    d.groups.iter().for_each(|group| lost("group", &group.name, &group.owner));
    kernel_arguments(&mut handover, d);
    for image in &from.bound.images {
        let why = match tool {
            Tool::Bootc if image.spec.source.starts_with(BOOTC_BOUND) => {
                "bootc has its own copy, from its next upgrade on; until then units find none"
            }
            Tool::Bootc => "bootc binds only what the image names in /usr/lib/bootc/bound-images.d",
            Tool::RpmOstree => "rpm-ostree binds no images",
        };
        handover.lost.push(Item::new(format!("bound image {}", image.spec.reference), why));
    }
    if !from.has_tool {
        handover.notes.push(format!("the image has no {tool}: who manages the host from then on?"));
    }
    handover
}

fn packages(handover: &mut Handover, tool: Tool, from: &Releasable<'_>) {
    let (mut requested, mut remove) = (String::new(), String::new());
    for package in &from.derivation.packages {
        let what = format!("{} {}", package.asked.words(), package.request);
        let list = match (tool, package.asked) {
            _ if package.request.starts_with(LOCAL) => None,
            (Tool::RpmOstree, Asked::Install) if from.rpm => Some((&mut requested, REQUESTED)),
            (Tool::RpmOstree, Asked::Remove) if from.rpm => Some((&mut remove, REMOVE)),
            (Tool::RpmOstree | Tool::Bootc, _) => None,
        };
        match list {
            Some((names, (group, key))) => {
                names.push_str(&format!("{};", package.request));
                handover.converted.push(Item::new(what, format!("{group}/{key} of the origin")));
            }
            None => handover.lost.push(Item::new(what, inexpressible(tool, from.rpm, package))),
        }
    }
    for ((group, key), value) in [(REQUESTED, requested), (REMOVE, remove)] {
        if !value.is_empty() {
            handover.origin.push(Key { group: group.into(), key: key.into(), value });
        }
    }
    if handover.origin.is_empty() {
        return;
    }
    handover.dropped.push(Item::new(
        "the lock of the packages",
        "rpm-ostree takes the newest; print it first with: osctl lock export",
    ));
    handover.notes.extend([
        "the new deployment has no layered packages yet: run rpm-ostree upgrade before the reboot".to_owned(),
        "rpm-ostree takes packages from /etc/yum.repos.d: write there what only drop-ins declare (repos:)"
            .to_owned(),
    ]);
}

fn inexpressible(tool: Tool, rpm: bool, package: &PackageRequest) -> &'static str {
    match tool {
        _ if package.asked == Asked::Layer => {
            "build it into the image: COPY --from=IMAGE in its Containerfile"
        }
        _ if package.asked == Asked::Extension => "no other tool takes packages from an image",
        Tool::RpmOstree if rpm && package.request.starts_with(LOCAL) => {
            "install the file: rpm-ostree install FILE"
        }
        Tool::Bootc => "bootc changes no packages; build it into the image",
        Tool::RpmOstree if !rpm => "rpm-ostree installs packages of rpm only",
        Tool::RpmOstree => "rpm-ostree notes the file that replaces it: rpm-ostree override replace FILE",
    }
}

/// All tools keep the arguments of an entry. Only who put them there is forgotten.
fn kernel_arguments(handover: &mut Handover, derivation: &Derivation) {
    for karg in derivation.kargs.iter().filter(|karg| karg.owner != "local") {
        let why = match is_dropin(&karg.owner) {
            true => format!("it is the host's own from then on; {} has put it there", karg.owner),
            false => "it is the host's own from then on, also when the image has it no more".to_owned(),
        };
        handover.converted.push(Item::new(format!("kernel argument {}", karg.arg), why));
    }
    for karg in &derivation.deleted_kargs {
        let why = format!("it stays away; {} has taken it out", karg.owner);
        handover.converted.push(Item::new(format!("kernel argument {}", karg.arg), why));
    }
}
