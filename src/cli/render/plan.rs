//! A plan, for people.

use super::{counted, value};
use crate::model::bytes::human as size;
use crate::model::plan::{Kind, Part, Plan, Release};

/// The numbers in a few lines, for `upgrade --check`.
pub fn brief(plan: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    if plan.changed {
        lines.push(format!("to download: {}", download(plan)));
        lines.push(format!("to write: {}", written(plan)));
    }
    lines.extend(plan.notes.iter().cloned());
    lines
}

/// All of it. `sizes` shows each part.
pub fn human(summary: &str, plan: &Plan, sizes: bool) -> String {
    let mut text = format!("{}\n", value(summary));
    let mut row = |label: &str, shown: String| text.push_str(&format!("{label:>10}: {}\n", value(&shown)));
    row("Image", plan.image.as_ref().map_or_else(|| "none is followed".into(), ToString::to_string));
    row("Now", plan.current.as_ref().map_or_else(|| "nothing is deployed".into(), release));
    row("Then", release(&plan.target));
    row("Download", download(plan));
    row("Write", written(plan));
    for fs in &plan.file_systems {
        let about = about(fs.estimated && fs.need > 0);
        row("Space", format!("{}: needs {about}{}, {} are free", fs.path, size(fs.need), size(fs.free)));
    }
    for note in &plan.notes {
        row("Note", note.clone());
    }
    if sizes {
        text.push_str(&table(&plan.parts));
    }
    text
}

fn release(release: &Release) -> String {
    let version = if release.version.is_empty() { "unknown version" } else { &release.version };
    match &release.digest {
        Some(digest) => format!("{version} ({digest})"),
        None => version.to_owned(),
    }
}

fn about(estimated: bool) -> &'static str {
    if estimated { "about " } else { "" }
}

fn download(plan: &Plan) -> String {
    let images = |kind| plan.parts.iter().filter(move |p| p.kind == kind);
    let layers: u32 = plan.parts.iter().map(|p| p.layers_new).sum();
    let total: u32 = plan.parts.iter().map(|p| p.layers_total).sum();
    let mut text = size(plan.download);
    if total > 0 {
        text.push_str(&format!(" of {} ({layers} of {total} layers)", size(plan.full_download)));
    }
    match images(Kind::Bound).count() {
        0 => {}
        n => {
            let new = images(Kind::Bound).filter(|p| p.layers_new > 0).count();
            text.push_str(&format!(", with {new} of {}", counted(n, "bound image")));
        }
    }
    text
}

fn written(plan: &Plan) -> String {
    let (boot, guess) = plan.boot();
    let rest = plan.unpacked.saturating_sub(boot);
    let estimated = plan.parts.iter().any(|p| p.kind != Kind::Boot && p.estimated);
    let to_boot = format!("{}{} to /boot", about(guess && boot > 0), size(boot));
    format!("{}{}, and {to_boot}", about(estimated), size(rest))
}

fn table(parts: &[Part]) -> String {
    let mut text = format!("\n{:>12}  {:>12}  {:>18}  {:>9}  PART\n", "DOWNLOAD", "OF", "WRITE", "LAYERS");
    for part in parts {
        let layers = if part.layers_total == 0 {
            "-".to_owned()
        } else {
            format!("{}/{}", part.layers_new, part.layers_total)
        };
        text.push_str(&format!(
            "{:>12}  {:>12}  {:>18}  {layers:>9}  {}\n",
            size(part.download),
            size(part.full_download),
            format!("{}{}", about(part.estimated), size(part.unpacked)),
            value(&part.name)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::schema::breaks;
    use crate::model::image::Digest;
    use crate::model::plan::{Facts, Layer, Place, Role};
    use serde_json::Value;

    fn plan() -> Plan {
        let digest = |text: &str| text.parse::<Digest>().unwrap();
        let (one, two) = (digest(&format!("sha256:{:064}", 1)), digest(&format!("sha256:{:064}", 2)));
        let layer = |n: u64, size, here| Layer {
            digest: digest(&format!("sha256:{n:064}")),
            size,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            here,
        };
        let os = Part::image(
            Kind::Os,
            &"r.io/os:stable".parse().unwrap(),
            &two,
            &[layer(3, 80 << 20, false), layer(4, 300 << 20, true)],
        );
        let app = |name: &str, here| {
            Part::image(Kind::Bound, &name.parse().unwrap(), &one, &[layer(5, 5 << 20, here)])
        };
        let place = |role, device: u64, beside| Place {
            role,
            path: format!("/{device}"),
            device,
            free: 20 << 30,
            beside,
        };
        Plan::new(Facts {
            image: Some("r.io/os:stable".parse().unwrap()),
            target: Release { digest: Some(two), version: "2".into() },
            current: Some(Release { digest: Some(one.clone()), version: "1".into() }),
            changed: true,
            parts: vec![os, Part::boot(60 << 20, true), app("r.io/a:1", false), app("r.io/b:1", true)],
            places: vec![
                place(Role::Root, 0, 80 << 20),
                place(Role::Boot, 1, 1 << 20),
                place(Role::Bound, 0, 0),
            ],
            notes: vec!["it would be refused: \x1b[2Jno".into()],
        })
    }

    #[test]
    fn people_read_what_it_takes() {
        let expected = "\
Update available: 2
     Image: docker://r.io/os:stable
       Now: 1 (sha256:0000000000000000000000000000000000000000000000000000000000000001)
      Then: 2 (sha256:0000000000000000000000000000000000000000000000000000000000000002)
  Download: 85.0 MiB of 390.0 MiB (2 of 4 layers), with 1 of 2 bound images
     Write: about 237.2 MiB, and about 60.0 MiB to /boot
     Space: /0: needs about 317.2 MiB, 20.0 GiB are free
     Space: /1: needs about 61.0 MiB, 20.0 GiB are free
      Note: it would be refused: \\u{1b}[2Jno

    DOWNLOAD            OF               WRITE     LAYERS  PART
    80.0 MiB     380.0 MiB     about 223.3 MiB        1/2  os
         0 B           0 B      about 60.0 MiB          -  kernel and initramfs
     5.0 MiB       5.0 MiB      about 14.0 MiB        1/1  r.io/a:1
         0 B       5.0 MiB                 0 B        0/1  r.io/b:1
";
        assert_eq!(human("Update available: 2", &plan(), true), expected);
        let (start, _) = expected.split_once("\n\n").unwrap();
        assert_eq!(human("Update available: 2", &plan(), false), format!("{start}\n"));
    }

    #[test]
    fn a_check_says_the_same_in_short() {
        assert_eq!(
            brief(&plan()),
            [
                "to download: 85.0 MiB of 390.0 MiB (2 of 4 layers), with 1 of 2 bound images",
                "to write: about 237.2 MiB, and about 60.0 MiB to /boot",
                "it would be refused: \\u{1b}[2Jno"
            ]
        );
    }

    #[test]
    fn the_schema_names_every_member_of_a_plan() {
        let schema: Value = serde_json::from_str(include_str!("../../../docs/plan.schema.json")).unwrap();
        let mut plan = serde_json::to_value(plan()).unwrap();
        assert_eq!(breaks(&schema, &schema, &plan, "plan"), Vec::<String>::new());
        plan["parts"][0]["surprise"] = true.into();
        plan["target"].as_object_mut().unwrap().remove("digest");
        let wrong = breaks(&schema, &schema, &plan, "plan").join("\n");
        assert!(wrong.contains("plan.parts[0].surprise is not in the schema"), "{wrong}");
        assert!(wrong.contains("plan.target has no digest"), "{wrong}");
    }
}
