//! Whether JSON is what its schema says: as much of the language as our schemas use.

use serde_json::Value;

/// How a value breaks a schema, as far as ours uses the language. Members of an `object` that the schema does not name
/// break it, too.
pub(crate) fn breaks(root: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(name) = schema["$ref"].as_str() {
        if let Some(path) = name.strip_prefix('#') {
            let target = root.pointer(path).unwrap_or_else(|| panic!("{name} at {at}"));
            return breaks(root, target, value, at);
        }
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
        let other: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        return breaks(&other, &other, value, at);
    }
    let mut wrong = Vec::new();
    if let Some(any) = schema["anyOf"].as_array() {
        let all: Vec<_> = any.iter().map(|s| breaks(root, s, value, at)).collect();
        if !all.iter().any(Vec::is_empty) {
            wrong.extend(all.concat());
        }
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        wrong.extend(breaks(root, part, value, at));
    }
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_u64(),
        Some("number") => value.is_number(),
        Some("null") => value.is_null(),
        Some(other) => panic!("type {other} at {at}"),
        None => match (schema.get("const"), schema["enum"].as_array()) {
            (Some(one), _) => one == value,
            (None, Some(all)) => all.contains(value),
            // A part of a schema may say something else; what says nothing at all is forgotten, or forbids.
            (None, None) => {
                ["anyOf", "allOf", "required", "properties"].iter().any(|k| schema.get(k).is_some())
            }
        },
    };
    if !fits {
        wrong.push(format!("{at} is {value}, not {schema}"));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.is_object() && value.get(name).is_none() {
            wrong.push(format!("{at} has no {name}"));
        }
    }
    for (name, member) in value.as_object().into_iter().flatten() {
        let at = format!("{at}.{name}");
        match schema["properties"].get(name).or_else(|| schema.get("additionalProperties")) {
            Some(schema) => wrong.extend(breaks(root, schema, member, &at)),
            None if schema["type"] == "object" => wrong.push(format!("{at} is not in the schema")),
            None => {}
        }
    }
    for (i, item) in value.as_array().into_iter().flatten().enumerate().filter(|_| schema["type"] == "array")
    {
        wrong.extend(breaks(root, &schema["items"], item, &format!("{at}[{i}]")));
    }
    wrong
}
