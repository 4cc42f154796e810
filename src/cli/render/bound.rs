//! Bound images, for people.

use super::{table, value};
use crate::model::bytes;
use crate::model::status::{Bound, Status};
use crate::model::time::utc;

/// One line an image, and below it what is wrong with it.
pub fn table(status: &Status, images: &[&Bound]) -> String {
    if images.is_empty() {
        return "No bound images.\n".to_owned();
    }
    let mut rows = vec![["REFERENCE", "DIGEST", "MODE", "STATE", "SIZE", "DEPLOYMENTS"].map(str::to_owned)];
    rows.extend(images.iter().map(|image| row(status, image)));
    let mut text = String::new();
    let mut lines = table::lines(&rows);
    text.extend(lines.next());
    for (line, image) in lines.zip(images) {
        text.push_str(&line);
        if !image.damage.is_empty() {
            text.push_str(&format!("  checked {}:\n", utc(image.checked)));
        }
        for damage in &image.damage {
            text.push_str(&format!("  {}\n", value(&damage.to_string())));
        }
    }
    text
}

fn row(status: &Status, image: &Bound) -> [String; 6] {
    let size = if image.size == 0 { "-".to_owned() } else { bytes::human(image.size) };
    let digest = image.digest.hex()[..12].to_owned();
    let roles: Vec<String> = image.deployments.iter().map(|id| role(status, id)).collect();
    let reference = value(&image.reference.name).into_owned();
    [reference, digest, image.mode.name().into(), image.state.name().into(), size, roles.join(",")]
}

/// What a deployment is, or which one.
fn role(status: &Status, id: &str) -> String {
    for (role, is) in [("booted", &status.booted), ("staged", &status.staged), ("rollback", &status.rollback)]
    {
        if is.as_deref() == Some(id) {
            return role.into();
        }
    }
    match status.deployment(id) {
        Some(d) if d.default => "default".into(),
        Some(d) => d.index.to_string(),
        None => id.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::bound::Mode;
    use crate::model::image::Digest;
    use crate::model::status::BoundState;
    use crate::model::verified::Damage;

    #[test]
    fn the_table_says_what_is_wrong_below_the_image() {
        let mut status = Status::initializing();
        status.booted = Some("os-a.0".into());
        assert_eq!(table(&status, &[]), "No bound images.\n");
        let layer = Digest::of(b"layer");
        let image = Bound {
            id: "x".into(),
            reference: "quay.io/x/a:1".parse().unwrap(),
            digest: Digest::of(b"a"),
            mode: Mode::Bind,
            source: "/etc/osctl/bound-images.d/a.toml".into(),
            state: BoundState::Damaged,
            size: 5 << 20,
            checked: 1_709_251_199,
            damage: vec![Damage::of_file(&layer, "/bin/x", "is missing")],
            deployments: vec!["os-a.0".into()],
        };
        let missing = Bound {
            reference: "quay.io/x/longer:1".parse().unwrap(),
            mode: Mode::Prefetch,
            state: BoundState::Missing,
            size: 0,
            damage: Vec::new(),
            ..image.clone()
        };
        let digest = &image.digest.hex()[..12];
        assert_eq!(
            table(&status, &[&image, &missing]),
            format!(
                "REFERENCE           DIGEST        MODE      STATE    SIZE     DEPLOYMENTS\n\
                 quay.io/x/a:1       {digest}  bind      damaged  5.0 MiB  booted\n  \
                 checked 2024-02-29 23:59:59 UTC:\n  layer {layer}, /bin/x: is missing\n\
                 quay.io/x/longer:1  {digest}  prefetch  missing  -        booted\n"
            )
        );
    }
}
