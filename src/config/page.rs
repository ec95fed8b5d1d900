//! The reference page and the JSON schema, both from the table of knobs.

use serde_json::{Value, json};

#[cfg(test)]
use super::Applies;
use super::{address, ha, knobs, user};

/// `docs/operating/configuration.md`, which a test keeps fresh.
#[cfg(test)]
pub(crate) fn page() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         Every key is also a flag of `laelaps run`, and a flag wins over the file. Without a file\n\
         the defaults hold. `laelaps config check FILE` tests a file, `laelaps config schema`\n\
         prints its JSON schema. A change takes effect at the next start; *format* marks what is\n\
         settled when a data directory is made. This page is generated from `src/config.rs`.\n\n\
         Sizes are bytes, or `512 KiB`, `64 MiB`, `2 GiB`. Times name their unit: `200ms`, `5s`,\n\
         `2m`.\n\n\
         | key | default | values | applies | what it is | why this default |\n\
         |---|---|---|---|---|---|\n",
    );
    for knob in knobs() {
        let applies = match knob.applies {
            Applies::Start => "start",
            Applies::Format => "format",
        };
        page.push_str(&format!(
            "| `{}` | `{}` | {} | {} | {}. | {} |\n",
            knob.key, knob.default, knob.bounds, applies, knob.what, knob.why
        ));
    }
    page.push_str(&address::page());
    page.push_str(&user::page());
    page.push_str(&ha::page());
    page
}

/// The JSON schema of a configuration file (draft 2020-12).
pub(crate) fn schema() -> Value {
    let mut properties = serde_json::Map::new();
    for knob in knobs() {
        properties.insert(
            knob.key.to_owned(),
            json!({
                "description": format!("{}. {} Values: {}.", knob.what, knob.why, knob.bounds),
                "type": ["string", "integer", "boolean"],
                "default": knob.default,
            }),
        );
    }
    properties.insert("address".to_owned(), address::schema());
    properties.extend(user::schema());
    properties.insert("ha".to_owned(), ha::schema());
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Laelaps configuration",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_page_is_fresh() {
        crate::reference::assert_fresh("docs/operating/configuration.md", &page());
    }

    #[test]
    fn the_schema_has_every_knob() {
        let schema = schema();
        for table in ["address", "users", "roles"] {
            assert_eq!(schema["properties"][table]["type"], "array", "{table}");
        }
        for knob in knobs() {
            assert!(schema["properties"][knob.key].is_object(), "{}", knob.key);
        }
    }
}
