//! The clients of an echo: a thread for each connection, one message under way on each.
//!
//! Failure: a client that hears something else, or nothing, panics with its thread's name.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes of a message.
pub const MESSAGE_BYTES: usize = 256;

/// Starts them; each ends its connection after its last message.
pub fn start(addr: SocketAddr, connections: usize, messages: usize) -> Vec<JoinHandle<()>> {
    let client = move || {
        let mut stream = TcpStream::connect(addr).expect("the server listens");
        stream.set_nodelay(true).expect("a socket of ours");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket of ours");
        let (sent, mut heard) = ([7; MESSAGE_BYTES], [0; MESSAGE_BYTES]);
        for _ in 0..messages {
            stream.write_all(&sent).expect("sent");
            stream.read_exact(&mut heard).expect("an echo");
            assert_eq!(heard, sent);
        }
    };
    (0..connections)
        .map(|at| {
            let named = thread::Builder::new().name(format!("client {at}"));
            named.spawn(client).expect("a thread")
        })
        .collect()
}
