//! Validators for MongoDB (`$jsonSchema`), made from the JSON Schemas of documents.
//!
//! MongoDB's dialect is draft 4 with BSON types: no `$ref`, `const`, `if`, `format`, and `bsonType` instead of `type`. Every keyword is
//! converted or known to be a mere annotation; another one is an error, so that no rule is lost unnoticed. What only Offramp writes is not
//! described further than as a list: a later version may write other entries, and a validator must never reject a worker's update.

use serde_json::{Map, Value, json};

use super::all;
use crate::store::Collection;

/// Lists that only Offramp writes.
const OWN_LISTS: [&str; 6] = ["applied", "card_notices", "history", "notifications", "outbox", "payment_failures"];

/// Keywords that say nothing about what is valid.
const ANNOTATIONS: [&str; 9] =
    ["$schema", "$id", "$defs", "title", "description", "readOnly", "default", "examples", "$comment"];

/// Keywords that mean the same to MongoDB, with values that are not schemas.
const UNCHANGED: [&str; 12] = [
    "enum",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "required",
    "uniqueItems",
];

/// A keyword that cannot be converted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the JSON Schema keyword `{0}` has no conversion for MongoDB")]
pub struct UnknownKeyword(String);

/// The commands that set the validator of each collection: `{"collMod": …}`. Documents that are invalid already can still be updated
/// (`moderate`).
///
/// # Errors
/// When a schema has a keyword that cannot be converted.
pub fn mongodb_commands() -> Result<Vec<Value>, UnknownKeyword> {
    Collection::ALL
        .into_iter()
        .map(|collection| {
            let name = format!("documents/{}", collection.as_str());
            let schema = all().into_iter().find(|file| file.name == name).map(|file| file.schema).unwrap_or_default();
            Ok(json!({
                "collMod": collection.as_str(),
                "validator": { "$jsonSchema": document(&schema)? },
                "validationLevel": "moderate",
                "validationAction": "error",
            }))
        })
        .collect()
}

/// The same as a script for mongosh, which also creates missing collections.
///
/// # Errors
/// As [`mongodb_commands`].
pub fn mongodb_script() -> Result<String, UnknownKeyword> {
    let commands = Value::Array(mongodb_commands()?);
    Ok(format!(
        "// Sets the validators of Offramp's collections in the current database:\n\
         //   offramp schemas --mongodb > validators.js && mongosh \"mongodb://localhost:27017/offramp\" validators.js\n\
         // Documents that are invalid already stay, and can be updated. To log instead of reject, write \"warn\" for \"error\".\n\
         for (const command of {commands:#}) {{\n  \
           if (!db.getCollectionNames().includes(command.collMod)) db.createCollection(command.collMod);\n  \
           const reply = db.runCommand(command);\n  \
           if (reply.ok !== 1) throw new Error(`${{command.collMod}}: ${{reply.errmsg}}`);\n  \
           print(`${{command.collMod}}: validator set`);\n\
         }}\n"
    ))
}

/// Converts the schema of a document. Null counts as absent, except where a field is required.
fn document(schema: &Value) -> Result<Value, UnknownKeyword> {
    let definitions = schema["$defs"].as_object().cloned().unwrap_or_default();
    let mut described = schema.clone();
    if let Some(properties) = described["properties"].as_object_mut() {
        for (_, property) in properties.iter_mut().filter(|(name, _)| OWN_LISTS.contains(&name.as_str())) {
            *property = json!({ "type": ["array", "null"] });
        }
    }
    let mut converted = convert(&described, &definitions)?;
    let required: Vec<Value> = schema["required"].as_array().cloned().unwrap_or_default();
    if let Some(properties) = converted["properties"].as_object_mut() {
        for (_, property) in properties.iter_mut().filter(|(name, _)| !required.contains(&json!(name))) {
            *property = json!({ "anyOf": [{ "bsonType": "null" }, property.take()] });
        }
    }
    Ok(converted)
}

fn convert(schema: &Value, definitions: &Map<String, Value>) -> Result<Value, UnknownKeyword> {
    // `true` and `{}` allow anything.
    let Value::Object(schema) = schema else { return Ok(json!({})) };
    if is_date(schema) {
        let is_nullable =
            schema.get("type").and_then(Value::as_array).is_some_and(|kinds| kinds.contains(&json!("null")));
        return Ok(if is_nullable { json!({ "bsonType": ["date", "null"] }) } else { json!({ "bsonType": "date" }) });
    }
    let mut converted = Map::new();
    let mut all_of = Vec::new();
    for (keyword, value) in schema {
        match keyword.as_str() {
            "$ref" => {
                let name = value.as_str().and_then(|name| name.strip_prefix("#/$defs/")).unwrap_or_default();
                let definition = definitions.get(name).ok_or_else(|| UnknownKeyword(format!("$ref {value}")))?;
                all_of.push(convert(definition, definitions)?);
            }
            "type" => {
                converted.insert("bsonType".to_owned(), bson_type(value));
                // A whole number may be stored as a double.
                if names_integer(value) && !schema.contains_key("multipleOf") {
                    converted.insert("multipleOf".to_owned(), json!(1));
                }
            }
            "const" => drop(converted.insert("enum".to_owned(), json!([value]))),
            "pattern" => drop(converted.insert("pattern".to_owned(), json!(whole_text(value)))),
            // The pattern beside it says the same.
            "format" if schema.contains_key("pattern") => {}
            "properties" => {
                let properties: Result<Map<_, _>, _> = value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(name, property)| Ok((name.clone(), convert(property, definitions)?)))
                    .collect();
                converted.insert(keyword.clone(), Value::Object(properties?));
            }
            "additionalProperties" if value.is_boolean() => drop(converted.insert(keyword.clone(), value.clone())),
            "items" | "not" | "additionalProperties" => {
                converted.insert(keyword.clone(), convert(value, definitions)?);
            }
            "allOf" => all_of.extend(converted_list(value, definitions)?),
            "anyOf" | "oneOf" => {
                converted.insert(keyword.clone(), Value::Array(converted_list(value, definitions)?));
            }
            "if" => {
                let condition = convert(value, definitions)?;
                if let Some(then) = schema.get("then") {
                    all_of.push(json!({ "anyOf": [{ "not": condition.clone() }, convert(then, definitions)?] }));
                }
                if let Some(otherwise) = schema.get("else") {
                    all_of.push(json!({ "anyOf": [condition, convert(otherwise, definitions)?] }));
                }
            }
            "then" | "else" if schema.contains_key("if") => {}
            // MongoDB requires at least one name.
            "required" if value.as_array().is_some_and(Vec::is_empty) => {}
            other if UNCHANGED.contains(&other) => drop(converted.insert(keyword.clone(), value.clone())),
            other if ANNOTATIONS.contains(&other) => {}
            other => return Err(UnknownKeyword(other.to_owned())),
        }
    }
    if !all_of.is_empty() {
        converted.insert("allOf".to_owned(), Value::Array(all_of));
    }
    Ok(Value::Object(converted))
}

fn converted_list(list: &Value, definitions: &Map<String, Value>) -> Result<Vec<Value>, UnknownKeyword> {
    list.as_array().into_iter().flatten().map(|schema| convert(schema, definitions)).collect()
}

/// Whether a schema describes an instant, which extended JSON writes as `{"$date": …}`.
fn is_date(schema: &Map<String, Value>) -> bool {
    let requires_it =
        || schema.get("required").and_then(Value::as_array).is_some_and(|names| names.contains(&json!("$date")));
    schema.get("properties").is_some_and(|properties| properties.get("$date").is_some()) || requires_it()
}

fn names_integer(kind: &Value) -> bool {
    kind == "integer" || kind.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "integer"))
}

fn bson_type(kind: &Value) -> Value {
    let names = |kind: &Value| match kind.as_str().unwrap_or_default() {
        "integer" => vec![json!("int"), json!("long"), json!("double")],
        "boolean" => vec![json!("bool")],
        other => vec![json!(other)],
    };
    let mut all: Vec<Value> = match kind {
        Value::Array(kinds) => kinds.iter().flat_map(names).collect(),
        one => names(one),
    };
    if all.len() == 1 { all.remove(0) } else { Value::Array(all) }
}

/// In PCRE, `$` also matches before a line break at the end.
fn whole_text(pattern: &Value) -> String {
    let pattern = pattern.as_str().unwrap_or_default();
    pattern.strip_suffix('$').map_or_else(|| pattern.to_owned(), |start| format!("{start}\\z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_keyword_is_converted_or_an_error() {
        let commands = mongodb_commands().unwrap();
        assert_eq!(commands.len(), Collection::ALL.len());
        for command in &commands {
            let schema = &command["validator"]["$jsonSchema"];
            assert!(
                schema["required"].as_array().is_some_and(|names| names.iter().any(|name| name == "_id")),
                "{command}"
            );
            assert!(schema["properties"].as_object().unwrap().len() > 8, "{command}");
        }
        let error = convert(&json!({ "prefixItems": [] }), &Map::new()).unwrap_err();
        assert_eq!(error, UnknownKeyword("prefixItems".to_owned()));
        let error = convert(&json!({ "type": "string", "format": "uuid" }), &Map::new()).unwrap_err();
        assert_eq!(error, UnknownKeyword("format".to_owned()));
    }

    #[test]
    fn keywords_are_converted_to_the_dialect_of_mongodb() {
        #[track_caller]
        fn check(schema: &Value, expected: &Value) {
            let definitions = json!({ "Day": { "type": "integer", "minimum": 1 } });
            assert_eq!(&convert(schema, definitions.as_object().unwrap()).unwrap(), expected);
        }
        let day = json!({ "bsonType": ["int", "long", "double"], "multipleOf": 1, "minimum": 1 });
        check(&json!({ "$ref": "#/$defs/Day", "description": "x" }), &json!({ "allOf": [day] }));
        check(&json!({ "type": ["boolean", "null"] }), &json!({ "bsonType": ["bool", "null"] }));
        check(&json!({ "const": "card" }), &json!({ "enum": ["card"] }));
        check(
            &json!({ "type": "object", "properties": { "$date": {} }, "required": ["$date"] }),
            &json!({ "bsonType": "date" }),
        );
        check(
            &json!({ "type": "string", "format": "date", "pattern": "^x$" }),
            &json!({ "bsonType": "string", "pattern": "^x\\z" }),
        );
        check(
            &json!({ "if": { "required": ["a"] }, "then": { "required": ["b"] }, "else": { "required": ["c"] } }),
            &json!({ "allOf": [
                { "anyOf": [{ "not": { "required": ["a"] } }, { "required": ["b"] }] },
                { "anyOf": [{ "required": ["a"] }, { "required": ["c"] }] },
            ] }),
        );
    }
}
