//! Which engine a broker takes, and that it says so.
//!
//! Kill -9, power cuts, damage and exits run on either engine: see `harness.rs`. Here is only what
//! chooses it. Where io_uring is refused a small launcher (`net/src/bin/refuse.rs`) stands for a
//! container runtime.

use crate::harness::{Scratch, Start};
use crate::place::{Books, ready_line_says};

#[test]
#[ignore = "needs the launcher: tests/run exits"]
fn auto_goes_on_without_io_uring_and_says_why() {
    for errno in ["EPERM", "ENOSYS"] {
        let scratch = Scratch::new("engine-auto");
        let data = scratch.join("data");
        let mut start = Start::new(&data);
        (start.engine, start.io_uring_refused) = (None, Some(errno.to_owned()));
        let broker = start.ready();
        let said = broker.said();
        for words in ["WARN the engine is epoll", "(seccomp)", "engine=\"epoll\"", "engine_reason"]
        {
            assert!(said.contains(words), "{errno}: nothing about `{words}`:\n{said}");
        }
        assert!(broker.stop().success());
    }
}

#[test]
#[ignore = "needs the launcher: tests/run exits"]
fn uring_where_it_is_refused_is_a_status_of_its_own() {
    let scratch = Scratch::new("engine-refused");
    let data = scratch.join("data");
    let mut start = Start::new(&data);
    start.engine = Some("uring".to_owned());
    for errno in ["EPERM", "ENOSYS"] {
        start.io_uring_refused = Some(errno.to_owned());
        let (status, said) = start.refused();
        assert_eq!(status, 20, "{errno}:\n{said}");
        for words in ["io_uring is refused", "io_uring_setup", "`auto`"] {
            assert!(said.contains(words), "{errno}: nothing about `{words}`:\n{said}");
        }
        assert!(!data.exists(), "nothing was made for a start that was refused");
    }
}

#[test]
fn a_directory_moves_between_the_engines() {
    let scratch = Scratch::new("engine-change");
    let data = scratch.join("data");
    let mut start = Start::new(&data);
    start.io_uring_refused = None;
    let mut books = Books::default();
    for engine in ["uring", "epoll", "uring", "epoll"] {
        start.engine = Some(engine.to_owned());
        let broker = start.ready();
        assert_eq!(ready_line_says(&broker, "engine"), engine);
        books.use_broker(broker.amqp);
        broker.kill();
    }
    books.take_all(&start.ready());
}
