//! Names for the parts of a schema. Code generators name classes after `$id` and `title`, and number what has neither.

use serde_json::{Map, Value, json};

/// A name for code: `subscription.cancellation-request` becomes `SubscriptionCancellationRequest`.
pub(super) fn class_name(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric());
    words.map(capitalized).collect()
}

/// Gives a title to each object and each choice below the root: of a definition, its name; of a property, the name of its parent and
/// its own; of one of several alternatives, also the value that tells it from the others.
pub(super) fn add_titles(root: &mut Map<String, Value>, class: &str) {
    parts(root, class);
    if let Some(Value::Object(definitions)) = root.get_mut("$defs") {
        for (name, definition) in definitions {
            add_title(definition, name);
        }
    }
}

fn add_title(schema: &mut Value, title: &str) {
    let Value::Object(map) = schema else { return };
    let is_class = map.contains_key("properties") || map.contains_key("oneOf") || map.contains_key("enum");
    if is_class && !map.contains_key("title") {
        map.shift_insert(0, "title".to_owned(), json!(title));
    }
    parts(map, title);
}

/// Titles of the parts of a schema of this title.
fn parts(map: &mut Map<String, Value>, title: &str) {
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        for (name, property) in properties {
            add_title(property, &format!("{title}{}", class_name(name)));
        }
    }
    if let Some(items) = map.get_mut("items") {
        add_title(items, &format!("{title}Item"));
    }
    for choice in ["oneOf", "anyOf"] {
        let Some(Value::Array(alternatives)) = map.get_mut(choice) else { continue };
        for alternative in alternatives {
            if let Some(difference) = difference(alternative) {
                add_title(alternative, &format!("{title}{}", class_name(difference)));
            } else if let Value::Object(alternative) = alternative {
                parts(alternative, title);
            }
        }
    }
}

/// What tells an alternative from the others: the first fixed value, such as `purchases` of `via: "purchases"`, or else the first
/// field that it must have.
fn difference(alternative: &Value) -> Option<&str> {
    let properties = alternative.get("properties")?.as_object()?;
    let fixed = properties.values().find_map(|property| property.get("const")?.as_str());
    fixed.or_else(|| alternative.get("required")?.get(0)?.as_str())
}

fn capitalized(word: &str) -> String {
    let mut characters = word.chars();
    characters.next().map(|first| first.to_ascii_uppercase().to_string() + characters.as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_for_code_has_no_punctuation() {
        assert_eq!(class_name("subscription.cancellation-request"), "SubscriptionCancellationRequest");
        assert_eq!(class_name("organization_id"), "OrganizationId");
    }

    #[test]
    fn every_object_and_choice_has_a_title() {
        let mut root = json!({
            "properties": {
                "data": { "oneOf": [
                    { "properties": { "id": { "type": "string" }, "via": { "const": "account" } } },
                    { "properties": { "via": { "const": "invoice" }, "lines": { "items": { "properties": {} } } } },
                ] },
            },
            "$defs": { "Actor": { "type": "object", "properties": { "role": { "enum": ["admin", "client"] } } } },
        });
        add_titles(root.as_object_mut().unwrap(), "Cancel");
        let title = |pointer: &str| root.pointer(pointer).and_then(|schema| schema["title"].as_str());
        assert_eq!(title(""), None);
        assert_eq!(title("/properties/data"), Some("CancelData"));
        assert_eq!(title("/properties/data/oneOf/0"), Some("CancelDataAccount"));
        assert_eq!(title("/properties/data/oneOf/0/properties/id"), None);
        assert_eq!(title("/properties/data/oneOf/1/properties/lines/items"), Some("CancelDataInvoiceLinesItem"));
        assert_eq!(title("/$defs/Actor"), Some("Actor"));
        assert_eq!(title("/$defs/Actor/properties/role"), Some("ActorRole"));
    }
}
