//! What the name of a quadlet file says.

/// The types of quadlet files that decide about images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Type {
    /// `x.container`
    Container,
    /// `x.image`
    Image,
    /// `x.kube`
    Kube,
    /// `x.volume`: cannot be bound itself, but a container may mount it, and it may be one of an image.
    Volume,
}

pub(super) const BUILT: &str = "a .build file is built on the host, so there is no image to bind";

impl Type {
    /// The type of a file that can be bound, or an error that completes the sentence `FILE: ...`.
    pub fn of_name(name: &str) -> std::result::Result<Type, &'static str> {
        match suffix(name) {
            "container" => Ok(Type::Container),
            "image" => Ok(Type::Image),
            "kube" => Ok(Type::Kube),
            "build" => Err(BUILT),
            _ => Err("does not end in .container, .image or .kube"),
        }
    }

    /// The section that decides, without brackets.
    pub fn section(self) -> &'static str {
        match self {
            Type::Container => "Container",
            Type::Image => "Image",
            Type::Kube => "Kube",
            Type::Volume => "Volume",
        }
    }
}

fn suffix(name: &str) -> &str {
    name.rsplit_once('.').filter(|(stem, _)| !stem.is_empty()).map_or("", |(_, suffix)| suffix)
}

/// The names of the directories with drop-ins for a unit, the most specific first.
///
/// For `a-b@c.container`: its own, that of the template, those of the names cut off at each dash, and that of the type.
pub fn drop_in_dirs(name: &str) -> Vec<String> {
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let (unit, instance) = stem.split_once('@').map_or((stem, None), |(unit, i)| (unit, Some(i)));
    let mut dirs = vec![format!("{name}.d")];
    if instance.is_some_and(|i| !i.is_empty()) {
        dirs.push(format!("{unit}@.{extension}.d"));
    }
    for (dash, _) in unit.match_indices('-').collect::<Vec<_>>().into_iter().rev() {
        let cut = &unit[..=dash];
        if instance.is_some() {
            dirs.push(format!("{cut}@.{extension}.d"));
        }
        dirs.push(format!("{cut}.{extension}.d"));
    }
    dirs.push(format!("{extension}.d"));
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_ins_are_looked_for_from_the_most_specific_directory_to_that_of_the_type() {
        for (name, expected) in [
            ("a.container", vec!["a.container.d", "container.d"]),
            ("a-b-c.image", vec!["a-b-c.image.d", "a-b-.image.d", "a-.image.d", "image.d"]),
            ("a@.container", vec!["a@.container.d", "container.d"]),
            ("a@1-2.kube", vec!["a@1-2.kube.d", "a@.kube.d", "kube.d"]),
            (
                "a-b@1.container",
                vec![
                    "a-b@1.container.d",
                    "a-b@.container.d",
                    "a-@.container.d",
                    "a-.container.d",
                    "container.d",
                ],
            ),
        ] {
            assert_eq!(drop_in_dirs(name), expected, "{name}");
        }
    }
}
