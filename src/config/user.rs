//! Users and roles of the configuration: who may log in how, and what follows from that.
//!
//! ```text
//!   [[users]]  name, password-hash | certificates, roles ──▶ rights of that user
//!   [[roles]]  name, send, consume, browse, create, delete, manage: patterns of addresses
//! ```
//! Invariants: a name is there once; each role that a user names is there; a name in a certificate
//! stands for one user at most. Failure: what is wrong is named, and no secret is repeated.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use broker::access::{Access, Right, Rights};
use broker::pattern::Pattern;
use serde::Deserialize;
use serde::de::Error as _;
use serde_json::{Value, json};

use crate::auth::PasswordHashes;

/// A user's name has at most so many bytes.
const NAME_BYTES_MAX: usize = 255;

/// One who may log in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct User {
    /// The name, at most 255 bytes.
    pub(crate) name: String,
    /// What `laelaps user hash` printed, once or for several mechanisms.
    #[serde(rename = "password-hash", default)]
    pub(crate) password_hash: PasswordHashes,
    /// Names in client certificates that stand for this user.
    #[serde(default)]
    pub(crate) certificates: Vec<CertificateName>,
    /// What the user may do, where there are roles.
    #[serde(default)]
    pub(crate) roles: Vec<String>,
}

/// What some users may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Role {
    /// As users call it.
    pub(crate) name: String,
    send: Patterns,
    consume: Patterns,
    browse: Patterns,
    create: Patterns,
    delete: Patterns,
    manage: Patterns,
}

impl Role {
    fn on(&self, right: Right) -> &[Pattern] {
        match right {
            Right::Send => &self.send.0,
            Right::Consume => &self.consume.0,
            Right::Browse => &self.browse.0,
            Right::Create => &self.create.0,
            Right::Delete => &self.delete.0,
            Right::Manage => &self.manage.0,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Patterns(Vec<Pattern>);

impl<'de> Deserialize<'de> for Patterns {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        let patterns: Result<_, String> = texts.iter().map(|text| Pattern::parse(text)).collect();
        patterns.map(Self).map_err(D::Error::custom)
    }
}

/// A name that a client certificate may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CertificateName {
    /// The whole subject, its parts in the certificate's order.
    Subject(Vec<(String, String)>),
    /// The subject's common name.
    CommonName(String),
    /// A DNS name of the subject's alternatives; case does not matter.
    Dns(String),
    /// A URI of them, as SPIFFE writes.
    Uri(String),
    /// A mail address of them.
    Email(String),
}

impl FromStr for CertificateName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is no name in a certificate: write cn:, dns:, uri:, email: or subject:"
            )
        };
        let (kind, name) = text.split_once(':').ok_or_else(wrong)?;
        if name.trim().is_empty() {
            return Err(wrong());
        }
        match kind {
            "cn" => Ok(Self::CommonName(name.to_owned())),
            "dns" => Ok(Self::Dns(name.to_ascii_lowercase())),
            "uri" => Ok(Self::Uri(name.to_owned())),
            "email" => Ok(Self::Email(name.to_owned())),
            "subject" => subject(name).map(Self::Subject).map_err(|why| format!("`{text}`: {why}")),
            _ => Err(wrong()),
        }
    }
}

/// The parts of a subject, `KIND=VALUE` with commas between; `\` before one of the characters that
/// RFC 4514 (section 2.4) names makes it part of the value.
fn subject(text: &str) -> Result<Vec<(String, String)>, String> {
    let (mut parts, mut part) = (Vec::new(), String::new());
    // Spaces around a value do not count, but those that are escaped do.
    let mut kept = 0;
    let mut rest = text.chars();
    loop {
        match rest.next() {
            Some('\\') => match rest.next().filter(|next| " \"#+,;<=>\\".contains(*next)) {
                Some(next) => {
                    part.push(next);
                    kept = part.len();
                }
                None => {
                    return Err("a `\\` stands before , + \" \\ < > ; = # or a space".to_owned());
                }
            },
            Some(next) if next != ',' => part.push(next),
            end @ (Some(_) | None) => {
                part.truncate(part.trim_end().len().max(kept));
                let Some((kind, value)) = part.split_once('=') else {
                    return Err(format!(
                        "its part `{part}` has no `=`; a comma within a part is written `\\,`"
                    ));
                };
                parts.push((kind.trim().to_owned(), value.trim_start().to_owned()));
                if end.is_none() {
                    return Ok(parts);
                }
                (part, kept) = (String::new(), 0);
            }
        }
    }
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subject(parts) => {
                let escaped = |value: &str| value.replace('\\', "\\\\").replace(',', "\\,");
                let part = |(kind, value): &(String, String)| format!("{kind}={}", escaped(value));
                let parts: Vec<String> = parts.iter().map(part).collect();
                write!(f, "subject:{}", parts.join(","))
            }
            Self::CommonName(name) => write!(f, "cn:{name}"),
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Uri(name) => write!(f, "uri:{name}"),
            Self::Email(name) => write!(f, "email:{name}"),
        }
    }
}

impl<'de> Deserialize<'de> for CertificateName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// The section of the reference page.
#[cfg(test)]
pub(super) fn page() -> String {
    let mut page = String::from(
        "\n## Users and roles\n\n\
         Without users everybody may connect (SASL ANONYMOUS, or no SASL) and do everything. With\n\
         at least one, every client logs in; with at least one role, a user may do what its roles\n\
         say and nothing else. [Security](security.md) says how to set this up.\n\n\
         ```toml\n\
         [[users]]\n\
         name = \"app\"\n\
         password-hash = \"SCRAM-SHA-256$32768:...\"  # laelaps user hash < file; or a list\n\
         certificates = [\"dns:app.example\"]         # with tls-client-ca\n\
         roles = [\"orders\"]\n\n\
         [[roles]]\n\
         name = \"orders\"\n\
         send = [\"orders.#\"]\n\
         create = [\"orders.#\", \"$temp.#\"]\n\
         ```\n\n\
         | right | on an address |\n|---|---|\n",
    );
    for right in Right::ALL {
        page.push_str(&format!("| `{}` | {} |\n", right.name(), right.what()));
    }
    page.push_str(
        "\nA name in a client certificate is `cn:NAME`, `dns:NAME`, `uri:NAME`, `email:NAME` or\n\
         `subject:C=…,O=…,CN=…`, its parts in the certificate's order; a comma within a part is\n\
         `\\,`.\n",
    );
    page
}

/// The tables of users and roles in the schema.
pub(super) fn schema() -> [(String, Value); 2] {
    let text = json!({ "type": "string" });
    let texts = json!({ "type": "array", "items": text });
    let table = |what: &str, required: &[&str], properties: Value| {
        json!({
            "description": what,
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": false,
                "required": required,
                "properties": properties,
            },
        })
    };
    let user = json!({
        "name": text,
        "password-hash": { "anyOf": [text, texts] },
        "certificates": texts,
        "roles": texts,
    });
    let mut role = json!({ "name": text });
    for right in Right::ALL {
        role[right.name()] = json!({
            "description": right.what(),
            "type": "array",
            "items": text,
        });
    }
    let users = table("Who may log in; nobody means that everybody may.", &["name"], user);
    let roles = table("What users may do; none means everything.", &["name"], role);
    [("users".to_owned(), users), ("roles".to_owned(), roles)]
}

/// What is wrong with these users and roles.
pub(super) fn check(users: &[User], roles: &[Role]) -> Result<(), String> {
    if users.is_empty() && !roles.is_empty() {
        return Err("roles: nobody has one, since there are no users".to_owned());
    }
    check_names("users", users.iter().map(|user| user.name.as_str()).collect())?;
    check_names("roles", roles.iter().map(|role| role.name.as_str()).collect())?;
    let mut names: Vec<&CertificateName> = Vec::new();
    for user in users {
        let User { name, password_hash, certificates, roles: named } = user;
        if password_hash.is_empty() && certificates.is_empty() {
            return Err(format!("users: `{name}` has neither password-hash nor certificates"));
        }
        if let Some(role) = named.iter().find(|wanted| roles.iter().all(|r| r.name != **wanted)) {
            return Err(format!("users: `{name}` has the role `{role}`, which is not there"));
        }
        for certificate in certificates {
            if names.contains(&certificate) {
                return Err(format!("users: the certificate name `{certificate}` is there twice"));
            }
            names.push(certificate);
        }
    }
    Ok(())
}

fn check_names(what: &str, mut names: Vec<&str>) -> Result<(), String> {
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("{what}: `{}` is there twice", twice[0]));
    }
    match names.iter().find(|name| name.is_empty() || name.len() > NAME_BYTES_MAX) {
        Some(name) => Err(format!(
            "{what}: a name has 1 to {NAME_BYTES_MAX} bytes, but this has {}",
            name.len()
        )),
        None => Ok(()),
    }
}

/// What each user may do: everything, where there are no roles.
pub(crate) fn access(users: &[User], roles: &[Role]) -> Access {
    if roles.is_empty() {
        return Access::default();
    }
    let rights_of = |user: &User| {
        let mut rights = Rights::default();
        for role in roles.iter().filter(|role| user.roles.contains(&role.name)) {
            for right in Right::ALL {
                role.on(right).iter().for_each(|pattern| rights.give(right, pattern.clone()));
            }
        }
        (user.name.clone(), Arc::new(rights))
    };
    Access::of(users.iter().map(rights_of).collect::<BTreeMap<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_may_have_commas_in_its_parts() {
        let parts = |text: &str| match text.parse() {
            Ok(CertificateName::Subject(parts)) => {
                parts.into_iter().map(|(kind, value)| format!("{kind}|{value}")).collect()
            }
            Ok(other) => panic!("{other:?}"),
            Err(why) => vec![why],
        };
        let plain: [&str; 2] = ["O|Example", "CN|a b"];
        assert_eq!(parts("subject:O=Example, CN = a b "), plain);
        let text = "subject:O=Example\\, Inc.,CN=a\\\\b\\=\\ ";
        let wanted: [&str; 2] = ["O|Example, Inc.", "CN|a\\b= "];
        assert_eq!(parts(text), wanted);
        let name: CertificateName = "subject:O=Example\\, Inc.,CN=a".parse().expect("sound");
        assert_eq!(name.to_string().parse(), Ok(name.clone()), "{name}");
        let why = parts("subject:O=Example, Inc.,CN=a");
        assert!(why[0].contains("Inc.` has no `=`") && why[0].contains("`\\,`"), "{why:?}");
        assert!(parts("subject:O=a\\x")[0].contains("stands before"));
        assert!(parts("subject:O=a\\")[0].contains("stands before"));
    }
}
