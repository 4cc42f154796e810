//! Many drop-ins to one manifest: nothing may be declared twice.

use super::path::within;
use super::yaml::located;
use super::{Declarations, Declared, Location};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::manifest::{Manifest, Node};
use std::collections::BTreeMap;

/// Merges drop-ins one after the other, in the order of their names.
#[derive(Debug, Default)]
pub struct Merger {
    manifest: Manifest,
    /// What was declared where: `path /etc/x`, `unit x.service`, `user x`, `uid 7`.
    seen: BTreeMap<String, (String, Location)>,
}

impl Merger {
    /// Adds what a drop-in declares; fails with `InvalidDropIn` at the second of two declarations.
    ///
    /// After a failure the manifest is incomplete. It may still be given more, to find more errors.
    pub fn add(&mut self, dropin: Declarations) -> Result<()> {
        let path = dropin.source.path.clone();
        for node in dropin.nodes {
            self.claim(&path, &format!("path {}", node.name), &node.name, &node)?;
            self.check_parents(&path, &node)?;
            self.manifest.nodes.insert(node.name, node.value);
        }
        for unit in dropin.units {
            self.claim(&path, &format!("unit {}", unit.name), &format!("unit {}", unit.name), &unit)?;
            self.manifest.units.insert(unit.name, unit.value);
        }
        for user in dropin.users {
            self.claim(&path, &format!("user {}", user.name), &format!("user {}", user.name), &user)?;
            if let Some(uid) = user.value.uid {
                self.claim(&path, &format!("uid {uid}"), &format!("uid {uid}"), &user)?;
            }
            self.manifest.users.insert(user.name, user.value);
        }
        for group in dropin.groups {
            self.claim(&path, &format!("group {}", group.name), &format!("group {}", group.name), &group)?;
            if let Some(gid) = group.value.gid {
                self.claim(&path, &format!("gid {gid}"), &format!("gid {gid}"), &group)?;
            }
            self.manifest.groups.insert(group.name, group.value);
        }
        for repo in dropin.repos {
            self.claim(
                &path,
                &format!("repository {}", repo.name),
                &format!("repository {}", repo.name),
                &repo,
            )?;
            self.manifest.packages.repos.insert(repo.name, repo.value);
        }
        for from in dropin.replace_from {
            // Two may agree.
            if self.manifest.packages.replace_from.get(&from.name) != Some(&from.value) {
                let what = format!("the repository of {}", from.name);
                self.claim(&path, &format!("replacement {}", from.name), &what, &from)?;
            }
            self.manifest.packages.replace_from.insert(from.name, from.value);
        }
        for layer in dropin.layers {
            let what = format!("layer {}", layer.name);
            self.claim(&path, &what, &what, &layer)?;
            self.manifest.layers.push(layer.value);
        }
        for file in dropin.local {
            // Two may name the same file, and then it is the same.
            if self.manifest.packages.local.get(&file.name) != Some(&file.value) {
                let what = format!("package {}", file.name);
                self.claim(&path, &what, &what, &file)?;
            }
            self.manifest.packages.local.insert(file.name, file.value);
        }
        let (all, new) = (&mut self.manifest.packages, dropin.packages);
        for (into, from) in [
            (&mut all.install, new.install),
            (&mut all.remove, new.remove),
            (&mut all.replace, new.replace),
            (&mut all.enabled_repos, new.enabled_repos),
            (&mut all.extensions, new.extensions),
        ] {
            // Several drop-ins may need the same package.
            from.into_iter().for_each(|(name, owners)| into.entry(name).or_default().extend(owners));
        }
        all.on_unavailable.extend(new.on_unavailable);
        self.manifest.kargs_append.extend(dropin.append);
        self.manifest.kargs_delete.extend(dropin.delete);
        self.manifest.sources.push(dropin.source);
        Ok(())
    }

    /// The merged manifest.
    pub fn finish(self) -> Manifest {
        self.manifest
    }

    fn claim<T>(&mut self, file: &str, id: &str, what: &str, new: &Declared<T>) -> Result<()> {
        if let Some((first, at)) = self.seen.get(id) {
            let place = if first == file { "line".to_owned() } else { format!("{first} line") };
            return Err(error(file, new, &format!("{what} is already declared by {place} {}", at.line))
                .hint("declare it once; a drop-in in /etc replaces the vendor's of the same name"));
        }
        self.seen.insert(id.to_owned(), (file.to_owned(), new.at));
        Ok(())
    }

    /// A path below a declared file or link could be written in one order only, or land somewhere else.
    fn check_parents(&self, file: &str, new: &Declared<Node>) -> Result<()> {
        let mut parent = new.name.as_str();
        while let Some((up, _)) = parent.rsplit_once('/').filter(|(up, _)| !up.is_empty()) {
            parent = up;
            if let Some(node @ (Node::File(_) | Node::Link(_))) = self.manifest.nodes.get(parent) {
                let what = if matches!(node, Node::Link(_)) { "link" } else { "file" };
                let message =
                    format!("{} lies below {parent}, which {} declares as a {what}", new.name, node.owner());
                return Err(error(file, new, &message));
            }
        }
        if let Node::File(_) | Node::Link(_) = new.value
            && let Some((below, node)) = self
                .manifest
                .nodes
                .range(format!("{}/", new.name)..)
                .next()
                .filter(|(path, _)| within(path, &new.name))
        {
            let message =
                format!("{} is no directory, but {} declares {below} below it", new.name, node.owner());
            return Err(error(file, new, &message));
        }
        Ok(())
    }
}

fn error<T>(file: &str, declared: &Declared<T>, message: &str) -> Error {
    located(ErrorKind::InvalidDropIn, file, Some(declared.at), &declared.key, message)
}
