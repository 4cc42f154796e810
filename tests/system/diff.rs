//! `osctl diff`: how what two deployments are made of differs.

use crate::host::{World, text};
use crate::image::{Image, Layer};

#[test]
fn two_deployments_differ_in_what_drop_ins_declare_with_the_drop_in_that_does() {
    let world = World::new();
    let host = world.host();
    let layer = Layer::new().file("usr/lib/tools/version", b"1");
    let tools = world.registry.push(&Image::default().layer(layer), "tools:1");
    let run = |args: &[&str]| {
        let out = host.osctl(args);
        assert!(out.status.success(), "{args:?}: {}", text(&out));
        String::from_utf8(out.stdout).unwrap()
    };
    host.drop_in("10-a.yaml", "files:\n- {path: /etc/a, contents: {inline: '1'}}\n- {path: /etc/b, contents: {inline: '1'}}\n- {path: /etc/same, contents: {inline: x}}\nusers: [{name: agent, system: true}]\n");
    run(&["reconcile"]);
    let image = world.registry.name("tools:1");
    host.drop_in("10-a.yaml", "files:\n- {path: /etc/a, contents: {inline: '2'}}\n- {path: /etc/same, contents: {inline: x}}\nusers: [{name: agent, system: true}]\nkernel-arguments: {append: [nosmt]}\n");
    host.drop_in(
        "20-b.yaml",
        &format!("layers: [{{image: \"{image}\"}}]\nunits: [{{name: base.service, enabled: true}}]\n"),
    );
    world.push_os("2");
    run(&["upgrade"]);

    let said = run(&["diff"]);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("From ") && lines[1].starts_with("OS image: 1 sha256:"), "{said}");
    let taken = format!("take {image} as {tools} (20-b.yaml)");
    assert_eq!(
        lines[2..],
        [
            "change /etc/a (10-a.yaml)",
            "remove /etc/b (10-a.yaml)",
            "add unit base.service (20-b.yaml)",
            "add kernel argument nosmt (10-a.yaml)",
            &format!("add layer {image} (20-b.yaml)"),
            &taken,
        ]
    );
    // The other way round, and with itself.
    let back = run(&["diff", "default", "rollback"]);
    assert!(back.contains("\nadd /etc/b (10-a.yaml)\n") && back.contains("\nleave out "), "{back}");
    assert!(run(&["diff", "default", "default"]).ends_with("No differences in what they are made of.\n"));
    let json: serde_json::Value = serde_json::from_str(&run(&["diff", "--json"])).unwrap();
    assert_eq!((&json["version"], json["declared"].as_array().unwrap().len()), (&1.into(), 5));
    assert_eq!(
        json["declared"][0],
        serde_json::json!({"subject": "path", "name": "/etc/a", "change": "changed", "drop-in": "10-a.yaml"})
    );
    assert_eq!(json["packages"][0]["to"], tools.as_str());
    let out = host.osctl(&["diff", "nope"]);
    assert_eq!(out.status.code(), Some(2), "{}", text(&out));
}
