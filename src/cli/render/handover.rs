//! A host that changes its owner, for people.

use super::value;
use crate::model::handover::{Handover, Item};

/// What becomes of what, the drop-in and the origin as they will be written, and the summary.
pub fn human(summary: &str, handover: &Handover) -> String {
    let mut text = String::new();
    let mut line = |line: &str| text.push_str(&format!("{}\n", value(line)));
    let image = handover.image.as_ref().map_or_else(|| "no image".to_owned(), ToString::to_string);
    line(&format!("{image}, managed by {}", handover.to.name()));
    let kinds: [(&str, &[Item]); 3] = [
        ("Converted:", &handover.converted),
        ("Dropped:", &handover.dropped),
        ("Lost (needs --lossy):", &handover.lost),
    ];
    for (title, items) in kinds.iter().filter(|(_, items)| !items.is_empty()) {
        line(title);
        items.iter().for_each(|item| line(&format!("  {item}")));
    }
    if let Some(drop_in) = &handover.drop_in {
        line(&format!("{}:", drop_in.path));
        drop_in.contents.lines().for_each(|l| line(&format!("  {l}")));
    }
    if !handover.origin.is_empty() {
        line("Origin:");
        handover.origin.iter().for_each(|key| line(&format!("  {key}={}", key.value)));
    }
    handover.notes.iter().for_each(|note| line(&format!("Note: {note}")));
    line(summary);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::schema::breaks;
    use crate::model::handover::{Key, NewDropIn, Owner, adopt};
    use serde_json::Value;

    fn handover() -> Handover {
        let key = |group: &str, key: &str, value: &str| Key {
            group: group.into(),
            key: key.into(),
            value: value.into(),
        };
        adopt(&[
            key("origin", "container-image-reference", "ostree-unverified-registry:quay.io/os:1"),
            key("origin", "custom-url", "https://example.com"),
            key("packages", "requested", "vim;"),
            key("rpmostree", "initramfs-args", "-v;"),
        ])
        .unwrap()
    }

    #[test]
    fn people_read_what_becomes_of_each_key_and_the_drop_in_as_it_will_be() {
        let mut handover = handover();
        let why = |item: &Item| item.why.clone();
        let (dropped, lost) = (why(&handover.dropped[0]), why(&handover.lost[0]));
        handover.drop_in =
            handover.drop_in.map(|d| NewDropIn { contents: "packages:\n  - vim\n".into(), ..d });
        let note = handover.notes[0].clone();
        assert_eq!(
            human("Nothing was changed.", &handover),
            format!(
                "docker://quay.io/os:1, managed by osctl\n\
                 Converted:\n  packages/requested vim: packages of 50-adopted.yaml\n\
                 Dropped:\n  origin/custom-url https://example.com: {dropped}\n\
                 Lost (needs --lossy):\n  rpmostree/initramfs-args -v: {lost}\n\
                 /etc/osctl/derive.d/50-adopted.yaml:\n  packages:\n    - vim\n\
                 Note: {note}\nNothing was changed.\n"
            )
        );
    }

    #[test]
    fn the_schema_names_every_member_of_a_handover() {
        let schema: Value = serde_json::from_str(include_str!("../../../docs/handover.schema.json")).unwrap();
        let mut full = handover();
        full.origin = vec![Key { group: "packages".into(), key: "requested".into(), value: "vim;".into() }];
        for handover in [full, Handover::new(Owner::Bootc, None)] {
            let json = serde_json::to_value(&handover).unwrap();
            assert_eq!(breaks(&schema, &schema, &json, "handover"), Vec::<String>::new());
        }
        let mut json = serde_json::to_value(self::handover()).unwrap();
        json["lost"][0]["surprise"] = true.into();
        let wrong = breaks(&schema, &schema, &json, "handover").join("\n");
        assert!(wrong.contains("handover.lost[0].surprise is not in the schema"), "{wrong}");
    }
}
