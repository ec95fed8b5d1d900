//! Where clients reach a broker, and how they are told of it.
//!
//! ```text
//!   redirect               the error's info                    a map
//!   failover-server-list   a property of our open   a list of  maps
//!                                                              └─ hostname, network-host, port,
//!                                                                 scheme: `amqp` or `amqps`
//! ```
//! The first three keys are those of [2.8.16]; clients that know the list read it by the same ones
//! and know `scheme`. A client is told of the way that it came itself: who came with TLS is not
//! sent where there is none, and who came without may have no certificate to trust.
//!
//! Invariant: a list holds every broker that may serve, or there is none: a client that takes it
//! throws its own away. So it is left out whole where hosts are long and a client's frames short.

use amqp::codec::{CompoundWriter, Symbol};
use amqp::error::INFO_BYTES_MAX;

/// Longest host: twice in an error's info, which goes on the wire whole or not at all.
pub const HOST_BYTES_MAX: usize = 96;
const _: () = assert!(2 * HOST_BYTES_MAX + 64 <= INFO_BYTES_MAX);

/// One way to one broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// It takes TLS there, and nothing else.
    pub is_secure: bool,
}

impl Server {
    /// `host:port`, `amqp://host:port` or `amqps://host:port`; an IPv6 address in brackets. Not one
    /// that stands for all addresses, as `0.0.0.0` does: nobody can connect to it elsewhere.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let (scheme, place) = text.split_once("://").unwrap_or(("amqp", text));
        let is_secure = match scheme {
            "amqp" => false,
            "amqps" => true,
            _ => return None,
        };
        let (host, port) = place.rsplit_once(':')?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_fit = match bare {
            Some(bare) => bare.parse::<core::net::Ipv6Addr>().is_ok(),
            None => host.chars().all(is_of_name),
        };
        let host = bare.unwrap_or(host);
        let is_nowhere =
            host.parse().is_ok_and(|address: core::net::IpAddr| address.is_unspecified());
        let port = port.parse().ok().filter(|port| *port > 0)?;
        let is_there = (1..=HOST_BYTES_MAX).contains(&host.len());
        (is_fit && is_there && !is_nowhere).then(|| Self { host: host.to_owned(), port, is_secure })
    }

    /// The pairs of its map.
    pub fn write(&self, map: &mut CompoundWriter<'_>) {
        let scheme = if self.is_secure { "amqps" } else { "amqp" };
        for (key, value) in
            [("hostname", &*self.host), ("network-host", &*self.host), ("scheme", scheme)]
        {
            map.element().symbol(Symbol::new(key));
            map.element().string(value);
        }
        map.element().symbol(Symbol::new("port"));
        map.element().int(self.port.into());
    }

    /// The property that lists those of them that are reached one way; all are, or none is listed.
    pub(crate) fn list(servers: &[Self], is_secure: bool, map: &mut CompoundWriter<'_>) {
        if servers.is_empty() || servers.iter().any(|server| server.is_secure != is_secure) {
            return;
        }
        map.element().symbol(Symbol::new("failover-server-list"));
        map.element().list_with(|list| {
            servers.iter().for_each(|server| list.element().map_with(|map| server.write(map)));
        });
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.is_secure { "amqps://" } else { "" };
        if self.host.contains(':') {
            return write!(f, "{scheme}[{}]:{}", self.host, self.port);
        }
        write!(f, "{scheme}{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use amqp::codec::Writer;

    use super::*;

    fn server(host: &str, port: u16, is_secure: bool) -> Server {
        Server { host: host.to_owned(), port, is_secure }
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for (text, read) in [
            ("a.example:5672", server("a.example", 5672, false)),
            ("10.0.0.1:1", server("10.0.0.1", 1, false)),
            ("[::1]:5672", server("::1", 5672, false)),
            ("amqps://a:5671", server("a", 5671, true)),
            ("amqps://[2001:db8::2]:5671", server("2001:db8::2", 5671, true)),
        ] {
            assert_eq!(Server::read(text), Some(read.clone()), "{text}");
            assert_eq!(read.to_string(), text);
        }
        assert_eq!(Server::read("amqp://a:5672"), Some(server("a", 5672, false)));
        let long = format!("{}:1", "x".repeat(HOST_BYTES_MAX + 1));
        for bad in [
            "",
            "a",
            ":5672",
            "a:0",
            "0.0.0.0:5672",
            "amqps://[::]:5671",
            "a:x",
            "::1:5672",
            "a:70000",
            "http://a:1",
            "[a]:1",
            "a b:1",
            "a/b:1",
            "u@a:1",
            "amqp://amqp://a:1",
            &long,
        ] {
            assert_eq!(Server::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_list_holds_all_or_is_none() {
        let list = |servers: &[Server], is_secure| {
            let mut encoded = Vec::new();
            Writer::new(&mut encoded).map_with(|map| Server::list(servers, is_secure, map));
            let map = amqp::codec::Reader::new(&encoded).map().expect("a map");
            map.get("failover-server-list").map(|value| format!("{value:?}"))
        };
        let (plain, secure) = (server("a", 1, false), server("b", 2, true));
        assert_eq!(list(&[], false), None);
        assert_eq!(list(&[plain.clone(), secure.clone()], false), None);
        assert_eq!(list(&[plain.clone(), secure.clone()], true), None);
        assert_eq!(list(&[secure.clone(), secure], false), None);
        assert!(list(&[plain.clone(), plain], false).is_some());
    }
}
