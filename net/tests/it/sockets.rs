//! Sockets of one ring against blocking sockets of the standard library.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use net::{Completion, Engine, RingConfig, TcpListen};

use crate::{Core, PATIENCE, now, on};

over_both_engines! {
    bytes_go_both_ways_and_the_end_is_seen,
    an_old_id_reaches_nobody,
    a_slow_reader_gets_a_large_buffer_in_order,
    few_buffers_starve_and_recover,
    a_starved_socket_waits_for_no_other_that_left_the_line,
    a_paused_receive_holds_the_peer_back,
    an_end_behind_bytes_is_seen,
    a_starved_socket_waits_for_no_other_that_has_no_more,
    urgent_data_holds_nothing_up,
    results_at_hand_keep_no_events_out,
    a_reset_ends_both_ways,
    a_reset_is_told_from_an_end,
    a_close_ends_what_is_under_way_and_comes_last,
    a_connection_moves_to_another_ring,
    a_connection_that_leaves_may_be_closed,
    a_thousand_connections_echo,
    a_client_may_speak_before_it_is_connected,
    a_refused_connection_says_so,
    a_stopped_listener_frees_its_address,
    rings_share_a_port,
    a_tiny_completion_queue_overflows_without_loss,
    a_dropped_ring_ends_everything_under_way,
    polling_finds_what_blocking_would,
    out_of_descriptors_rests_and_goes_on,
    no_more_sockets_than_agreed_and_on_when_one_is_closed,
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

fn pair(core: &mut Core) -> (net::SocketId, TcpStream) {
    let (_, addr) = core.listen();
    let client = TcpStream::connect(addr).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    (core.accepted(), client)
}

/// A socket with `SO_LINGER` 0, so that dropping it resets the connection.
fn resetting(stream: TcpStream) -> TcpStream {
    let socket = socket2::Socket::from(stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.into()
}

fn bytes_go_both_ways_and_the_end_is_seen(engine: Engine) {
    let mut core = Core::new(on(engine));
    let (socket, mut client) = pair(&mut core);
    core.ring.start_receive(socket);
    client.write_all(b"from the client").unwrap();
    assert_eq!(core.received(), (socket, b"from the client".to_vec()));
    core.ring.send(socket, b"to the ".to_vec());
    core.ring.send(socket, Vec::new());
    core.ring.send(socket, b"client".to_vec());
    core.ring.shutdown_write(socket);
    for expected in [&b"to the "[..], b"", b"client"] {
        match core.next() {
            Completion::Sent { buf, result, .. } => {
                result.unwrap();
                assert_eq!(buf, expected);
            }
            other => panic!("{other:?} instead of a send"),
        }
    }
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "to the client");
    client.shutdown(Shutdown::Write).unwrap();
    assert!(matches!(core.next(), Completion::ReceiveEnded { result: Ok(()), .. }));
    core.ring.close(socket);
    assert!(matches!(core.next(), Completion::Closed { socket: closed } if closed == socket));
    assert_eq!(core.ring.stats().sockets, 0);
    assert_eq!(core.ring.stats().leases_out, 0);
}

fn an_old_id_reaches_nobody(engine: Engine) {
    let mut core = Core::new(on(engine));
    let (_, addr) = core.listen();
    let _first = TcpStream::connect(addr).unwrap();
    let old = core.accepted();
    core.ring.close(old);
    assert!(matches!(core.next(), Completion::Closed { .. }));
    let mut client = TcpStream::connect(addr).unwrap();
    let new = core.accepted();
    assert_eq!(old.slot(), new.slot());
    core.ring.close(old);
    core.ring.start_receive(old);
    core.ring.send(old, b"lost".to_vec());
    match core.next() {
        Completion::Sent { socket, buf, result } => {
            assert_eq!((socket, &buf[..]), (old, &b"lost"[..]));
            assert_eq!(result.unwrap_err().kind(), ErrorKind::NotConnected);
        }
        other => panic!("{other:?} instead of a failed send"),
    }
    core.ring.start_receive(new);
    client.write_all(b"here").unwrap();
    assert_eq!(core.received(), (new, b"here".to_vec()));
}

fn a_slow_reader_gets_a_large_buffer_in_order(engine: Engine) {
    let mut core = Core::new(on(engine));
    let (socket, mut client) = pair(&mut core);
    let bytes = pattern(24 << 20);
    let (first, second) = bytes.split_at(17 << 20);
    core.ring.send(socket, first.to_vec());
    core.ring.send(socket, second.to_vec());
    // Nobody reads: the kernel takes what fits, and neither send may be over.
    let early = core.settle(Duration::from_millis(100));
    assert!(early.is_empty(), "{early:?}");
    let reader = std::thread::Builder::new().name("reader".to_owned()).spawn(move || {
        let mut got = vec![0; 24 << 20];
        client.read_exact(&mut got).unwrap();
        got
    });
    for expected in [first, second] {
        match core.next() {
            Completion::Sent { buf, result, .. } => {
                result.unwrap();
                assert!(buf == expected);
            }
            other => panic!("{other:?} instead of a send"),
        }
    }
    assert!(reader.unwrap().join().unwrap() == bytes);
}

fn few_buffers_starve_and_recover(engine: Engine) {
    let config = RingConfig { recv_buffers: 2, recv_buffer_bytes: 256, ..on(engine) };
    let mut core = Core::new(config);
    let (_, addr) = core.listen();
    let expected = pattern(64 << 10);
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = TcpStream::connect(addr).unwrap();
        client.write_all(&expected).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        clients.push(client);
    }
    let sockets = clients.iter().map(|_| core.accepted()).collect::<Vec<_>>();
    sockets.into_iter().for_each(|socket| core.ring.start_receive(socket));
    let mut got = vec![Vec::new(); 4];
    let mut kept = Vec::new();
    let mut ended = 0;
    while ended < 4 {
        match core.next() {
            Completion::Received { socket, lease } => {
                got[socket.slot()].extend_from_slice(core.ring.bytes(&lease));
                kept.push(lease);
            }
            Completion::ReceiveEnded { result, .. } => {
                result.unwrap();
                ended += 1;
            }
            other => panic!("{other:?} instead of bytes"),
        }
        // Both buffers are kept until there is no other, so every round starves somebody.
        if kept.len() == 2 {
            let starving = core.settle(Duration::from_micros(1));
            core.seen.extend(starving);
            kept.drain(..).for_each(|lease| core.ring.release(lease));
        } else if core.seen.is_empty() {
            kept.drain(..).for_each(|lease| core.ring.release(lease));
        }
    }
    kept.drain(..).for_each(|lease| core.ring.release(lease));
    assert!(got.iter().all(|bytes| *bytes == expected));
    assert!(core.ring.stats().recv_starved > 100, "{:?}", core.ring.stats());
    assert_eq!(core.ring.stats().leases_out, 0);
}

fn a_starved_socket_waits_for_no_other_that_left_the_line(engine: Engine) {
    for leaver in 0..2 {
        let mut core = Core::new(RingConfig { recv_buffers: 1, ..on(engine) });
        let mut pairs = (0..3).map(|_| pair(&mut core)).collect::<Vec<_>>();
        for (socket, client) in &mut pairs {
            core.ring.start_receive(*socket);
            client.write_all(b"x").unwrap();
        }
        let Completion::Received { socket: fed, lease } = core.next() else {
            panic!("no bytes");
        };
        assert!(core.settle(Duration::from_millis(50)).is_empty());
        assert_eq!(core.ring.stats().recv_starved, 2);
        let starved = pairs.iter().map(|pair| pair.0).filter(|&id| id != fed).collect::<Vec<_>>();
        core.ring.pause_receive(starved[leaver]);
        core.ring.release(lease);
        // One wait is enough: nothing else will happen that could end it.
        let mut completions = Vec::new();
        core.ring.wait(Some(PATIENCE), &mut completions).unwrap();
        let stays = starved[1 - leaver];
        assert!(
            matches!(completions[..], [Completion::Received { socket, .. }] if socket == stays),
            "{completions:?}"
        );
        core.drop_all(completions);
    }
}

fn a_paused_receive_holds_the_peer_back(engine: Engine) {
    let mut core = Core::new(on(engine));
    let (socket, client) = pair(&mut core);
    core.ring.start_receive(socket);
    core.ring.pause_receive(socket);
    let nothing = core.settle(Duration::from_millis(50));
    assert!(nothing.is_empty(), "{nothing:?}");
    let mut writer = client.try_clone().unwrap();
    let expected = pattern(32 << 20);
    let sent = expected.clone();
    let writer = std::thread::Builder::new()
        .name("writer".to_owned())
        .spawn(move || writer.write_all(&sent).unwrap())
        .unwrap();
    let nothing = core.settle(Duration::from_millis(200));
    assert!(nothing.is_empty(), "{nothing:?}");
    assert!(!writer.is_finished(), "32 MiB went somewhere though nobody receives");
    let mut got = Vec::new();
    let mut pauses = 0;
    while got.len() < expected.len() {
        core.ring.start_receive(socket);
        got.extend(core.received().1);
        if got.len() / (1 << 20) > pauses {
            pauses += 1;
            core.ring.pause_receive(socket);
            core.ring.start_receive(socket);
            core.ring.pause_receive(socket);
        }
    }
    writer.join().unwrap();
    assert!(got == expected);
}

/// Both are there before the first receive, so nothing else will wake the ring for the second.
fn an_end_behind_bytes_is_seen(engine: Engine) {
    let mut core = Core::new(on(engine));
    let (socket, mut client) = pair(&mut core);
    client.write_all(b"last words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    core.turn(Duration::from_millis(20));
    core.ring.start_receive(socket);
    assert_eq!(core.received(), (socket, b"last words".to_vec()));
    let end = core.next();
    assert!(matches!(end, Completion::ReceiveEnded { result: Ok(()), .. }), "{end:?}");
}

/// The only buffer was filled to its end, so nobody can know that there is no more.
fn a_starved_socket_waits_for_no_other_that_has_no_more(engine: Engine) {
    let config = RingConfig { recv_buffers: 1, recv_buffer_bytes: 256, ..on(engine) };
    let mut core = Core::new(config);
    let (first, mut full) = pair(&mut core);
    let (second, mut other) = pair(&mut core);
    core.ring.start_receive(first);
    core.ring.start_receive(second);
    full.write_all(&[1; 256]).unwrap();
    let Completion::Received { socket, lease } = core.next() else { panic!("no bytes") };
    assert_eq!((socket, lease.bytes()), (first, 256));
    other.write_all(b"second").unwrap();
    core.turn(Duration::from_millis(20));
    core.turn(Duration::from_millis(20));
    core.ring.release(lease);
    assert_eq!(core.received(), (second, b"second".to_vec()));
}

/// A receive ends short before the mark of urgent data, though there is more behind it.
fn urgent_data_holds_nothing_up(engine: Engine) {
    let mut core = Core::new(on(engine));
    let (socket, client) = pair(&mut core);
    let client = socket2::Socket::from(client);
    client.send(b"before").unwrap();
    client.send_out_of_band(b"!").unwrap();
    client.send(b"behind").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    core.ring.start_receive(socket);
    let mut got = Vec::new();
    while got.len() < 12 {
        got.extend(core.received().1);
    }
    assert_eq!(got, b"beforebehind");
}

fn results_at_hand_keep_no_events_out(engine: Engine) {
    let mut core = Core::new(on(engine));
    let (gone, _client) = pair(&mut core);
    core.ring.close(gone);
    assert!(matches!(core.next(), Completion::Closed { .. }));
    let (_, addr) = core.listen();
    let _client = TcpStream::connect(addr).unwrap();
    let mut turns = 0;
    loop {
        // It fails at once, so that each wait has a result before it asks the kernel.
        core.ring.send(gone, Vec::new());
        core.turn(PATIENCE);
        if core.seen.drain(..).any(|seen| matches!(seen, Completion::Accepted { .. })) {
            return;
        }
        turns += 1;
        assert!(turns < 1000, "the kernel is not asked");
    }
}

fn a_reset_ends_both_ways(engine: Engine) {
    let mut core = Core::new(on(engine));
    let (socket, client) = pair(&mut core);
    core.ring.start_receive(socket);
    core.ring.send(socket, vec![0; 64 << 20]);
    core.ring.send(socket, b"behind".to_vec());
    core.turn(Duration::from_millis(20));
    drop(resetting(client));
    let mut failed = Vec::new();
    let mut ended = false;
    while failed.len() < 2 || !ended {
        match core.next() {
            Completion::Sent { buf, result, .. } => failed.push((buf.len(), result.is_err())),
            Completion::ReceiveEnded { .. } => ended = true,
            other => panic!("{other:?} after a reset"),
        }
    }
    assert_eq!(failed, [(64 << 20, true), (6, true)]);
    core.ring.send(socket, b"later".to_vec());
    assert!(matches!(core.next(), Completion::Sent { result: Err(_), .. }));
    core.ring.close(socket);
    assert!(matches!(core.next(), Completion::Closed { .. }));
}

fn a_reset_is_told_from_an_end(engine: Engine) {
    let mut core = Core::new(on(engine));
    let (socket, client) = pair(&mut core);
    core.ring.start_receive(socket);
    core.turn(Duration::from_millis(20));
    drop(resetting(client));
    match core.next() {
        Completion::ReceiveEnded { result, .. } => {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        other => panic!("{other:?} after a reset"),
    }
}

fn a_close_ends_what_is_under_way_and_comes_last(engine: Engine) {
    let mut core = Core::new(on(engine));
    let (socket, mut client) = pair(&mut core);
    core.ring.start_receive(socket);
    core.ring.send(socket, vec![0; 64 << 20]);
    core.ring.send(socket, b"queued".to_vec());
    core.turn(Duration::from_millis(20));
    client.write_all(b"too late").unwrap();
    core.ring.close(socket);
    core.ring.close(socket);
    let mut sent = 0;
    loop {
        match core.next() {
            Completion::Sent { result, .. } => {
                assert!(result.is_err());
                sent += 1;
            }
            Completion::Closed { .. } => break,
            other => panic!("{other:?} of a closing socket"),
        }
    }
    assert_eq!(sent, 2);
    let late = core.settle(Duration::from_millis(20));
    assert!(late.is_empty(), "{late:?}");
    let stats = core.ring.stats();
    // What is left: the accept and the doorbell's poll.
    assert_eq!((stats.sockets, stats.operations, stats.leases_out), (0, 2, 0));
}

/// While the peer goes on sending: not a byte is lost, doubled or out of place.
fn a_connection_moves_to_another_ring(engine: Engine) {
    let (mut old, mut new) = (Core::new(on(engine)), Core::new(on(engine)));
    let (socket, mut client) = pair(&mut old);
    let sent = pattern(4 << 20);
    let bytes = sent.clone();
    let writer = std::thread::Builder::new()
        .spawn(move || {
            client.write_all(&bytes).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).unwrap();
            heard
        })
        .unwrap();
    old.ring.start_receive(socket);
    let mut received = Vec::new();
    while received.len() < sent.len() / 4 {
        received.extend(old.received().1);
    }
    old.ring.hand_over(socket);
    // What it is told meanwhile is for nobody.
    old.ring.start_receive(socket);
    let stream = loop {
        match old.next() {
            Completion::Received { lease, .. } => {
                received.extend(old.ring.bytes(&lease));
                old.ring.release(lease);
            }
            Completion::ReceiveEnded { result, .. } => result.unwrap(),
            Completion::HandedOver { socket: left, stream } => {
                assert_eq!(left, socket);
                break stream;
            }
            other => panic!("{other:?} of a socket that leaves"),
        }
    };
    assert_eq!(old.ring.stats().sockets, 0);
    let socket = new.ring.adopt(stream).unwrap();
    assert!(new.settle(Duration::from_millis(20)).is_empty(), "nobody asked it to receive");
    new.ring.start_receive(socket);
    loop {
        match new.next() {
            Completion::Received { lease, .. } => {
                received.extend(new.ring.bytes(&lease));
                new.ring.release(lease);
            }
            Completion::ReceiveEnded { result, .. } => break result.unwrap(),
            other => panic!("{other:?} of an adopted socket"),
        }
    }
    assert!(received == sent, "the bytes are the same, in order");
    new.ring.send(socket, b"heard".to_vec());
    assert!(matches!(new.next(), Completion::Sent { result: Ok(()), .. }));
    new.ring.close(socket);
    assert!(matches!(new.next(), Completion::Closed { .. }));
    assert_eq!(writer.join().unwrap(), b"heard");
    assert!(old.settle(Duration::from_millis(20)).is_empty());
}

fn a_connection_that_leaves_may_be_closed(engine: Engine) {
    let mut core = Core::new(on(engine));
    let (socket, mut client) = pair(&mut core);
    core.ring.start_receive(socket);
    core.turn(Duration::ZERO);
    core.ring.hand_over(socket);
    core.ring.close(socket);
    match core.next() {
        Completion::Closed { .. } => {
            let mut heard = Vec::new();
            assert_eq!(client.read_to_end(&mut heard).unwrap(), 0);
        }
        // One engine has it ready at once.
        Completion::HandedOver { stream, .. } => drop(stream),
        other => panic!("{other:?} of a socket that leaves"),
    }
    assert_eq!(core.ring.stats().sockets, 0);
}

fn a_thousand_connections_echo(engine: Engine) {
    const CONNECTIONS: usize = 1000;
    let mut core = Core::new(on(engine));
    let (_, addr) = core.listen();
    let mut ids = Vec::new();
    for _ in 0..CONNECTIONS {
        ids.push(core.ring.connect(addr).unwrap());
    }
    let (mut echoed, mut closed) = (0, 0);
    let mut served = Vec::new();
    while closed < 2 * CONNECTIONS {
        match core.next() {
            Completion::Accepted { socket, .. } => {
                served.push(socket);
                core.ring.start_receive(socket);
            }
            Completion::Connected { socket, result } => {
                result.unwrap();
                core.ring.start_receive(socket);
                core.ring.send(socket, format!("hello from {socket:?}").into_bytes());
            }
            Completion::Received { socket, lease } => {
                let bytes = core.ring.bytes(&lease).to_vec();
                core.ring.release(lease);
                if ids.contains(&socket) {
                    assert_eq!(bytes, format!("hello from {socket:?}").as_bytes());
                    echoed += 1;
                    core.ring.close(socket);
                } else {
                    core.ring.send(socket, bytes);
                }
            }
            Completion::ReceiveEnded { socket, result } => {
                assert!(served.contains(&socket));
                result.unwrap();
                core.ring.close(socket);
            }
            Completion::Sent { result, .. } => result.unwrap(),
            Completion::Closed { .. } => closed += 1,
            other => panic!("{other:?} while echoing"),
        }
    }
    assert_eq!(echoed, CONNECTIONS);
    assert_eq!((core.ring.stats().sockets, core.ring.stats().leases_out), (0, 0));
}

fn a_client_may_speak_before_it_is_connected(engine: Engine) {
    let mut core = Core::new(on(engine));
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = core.ring.connect(server.local_addr().unwrap()).unwrap();
    core.ring.start_receive(socket);
    core.ring.send(socket, b"first words".to_vec());
    core.ring.shutdown_write(socket);
    assert!(matches!(core.next(), Completion::Connected { result: Ok(()), .. }));
    assert!(matches!(core.next(), Completion::Sent { result: Ok(()), .. }));
    let (mut stream, _) = server.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "first words");
    stream.write_all(b"answer").unwrap();
    assert_eq!(core.received(), (socket, b"answer".to_vec()));
}

fn a_refused_connection_says_so(engine: Engine) {
    let mut core = Core::new(on(engine));
    let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let socket = core.ring.connect(addr).unwrap();
    core.ring.send(socket, b"nobody hears".to_vec());
    match core.next() {
        Completion::Connected { result, .. } => {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        other => panic!("{other:?} instead of a refusal"),
    }
    assert!(matches!(core.next(), Completion::Sent { result: Err(_), .. }));
    core.ring.close(socket);
    assert!(matches!(core.next(), Completion::Closed { .. }));
}

fn a_stopped_listener_frees_its_address(engine: Engine) {
    let mut core = Core::new(on(engine));
    let (listener, addr) = core.listen();
    let again = core.ring.listen(TcpListen { addr, reuse_port: false, backlog: 1 });
    assert_eq!(again.unwrap_err().kind(), ErrorKind::AddrInUse);
    core.ring.stop_listening(listener);
    core.ring.stop_listening(listener);
    let closed = core.next();
    assert!(matches!(closed, Completion::ListenerClosed { listener: id } if id == listener));
    let refused = TcpStream::connect_timeout(&addr, PATIENCE).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    core.ring.listen(TcpListen { addr, reuse_port: false, backlog: 1 }).unwrap();
    assert!(core.settle(Duration::from_millis(10)).is_empty());
}

fn rings_share_a_port(engine: Engine) {
    let mut first = Core::new(on(engine));
    let mut second = Core::new(on(engine));
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listen = |addr| TcpListen { addr, reuse_port: true, backlog: 128 };
    let (_, addr) = first.ring.listen(listen(any)).unwrap();
    second.ring.listen(listen(addr)).unwrap();
    let _clients = (0..64).map(|_| TcpStream::connect(addr).unwrap()).collect::<Vec<_>>();
    let until = now() + PATIENCE;
    while first.seen.len() + second.seen.len() < 64 {
        assert!(now() < until, "connections got lost");
        first.turn(Duration::from_millis(1));
        second.turn(Duration::from_millis(1));
    }
    assert!(!first.seen.is_empty() && !second.seen.is_empty());
}

fn a_tiny_completion_queue_overflows_without_loss(engine: Engine) {
    let config = RingConfig {
        entries: 8,
        completions: 8,
        completions_per_wait_max: 3,
        recv_buffers: 64,
        recv_buffer_bytes: 256,
        ..on(engine)
    };
    let mut core = Core::new(config);
    let (_, addr) = core.listen();
    let mut clients = (0..40).map(|_| TcpStream::connect(addr).unwrap()).collect::<Vec<_>>();
    let mut sockets = Vec::new();
    for _ in 0..40 {
        sockets.push(core.accepted());
    }
    for socket in &sockets {
        core.ring.start_receive(*socket);
        core.ring.send(*socket, vec![1; 100]);
    }
    for client in &mut clients {
        client.write_all(&[2; 300]).unwrap();
    }
    let (mut bytes, mut sends) = (0, 0);
    while bytes < 40 * 300 || sends < 40 {
        assert!(core.seen.len() <= 4, "a turn is bounded, but one gave {}", core.seen.len());
        match core.next() {
            Completion::Received { lease, .. } => {
                bytes += lease.bytes();
                core.ring.release(lease);
            }
            Completion::Sent { result, .. } => {
                result.unwrap();
                sends += 1;
            }
            other => panic!("{other:?} in a crowded ring"),
        }
    }
    let overflowed = core.ring.stats().overflows > 0;
    assert_eq!(overflowed, engine == Engine::Uring, "{:?}", core.ring.stats());
}

fn a_dropped_ring_ends_everything_under_way(engine: Engine) {
    let start = now();
    let mut core = Core::new(on(engine));
    let (_, addr) = core.listen();
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = TcpStream::connect(addr).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"unread").unwrap();
        clients.push(client);
    }
    let sockets = clients.iter().map(|_| core.accepted()).collect::<Vec<_>>();
    for (index, socket) in sockets.into_iter().enumerate() {
        if index % 2 == 0 {
            core.ring.start_receive(socket);
        }
        core.ring.send(socket, vec![0; 16 << 20]);
    }
    core.ring.connect(addr).unwrap();
    let seen = core.settle(Duration::from_millis(20));
    core.drop_all(seen);
    let bell = core.ring.doorbell();
    drop(core);
    bell.knock();
    assert!(now() - start < Duration::from_secs(5), "a drop must not wait for its bound");
    for mut client in clients {
        let mut rest = Vec::new();
        // The end or a reset, but not a connection that stays open.
        if let Err(error) = client.read_to_end(&mut rest) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }
    assert!(TcpStream::connect(addr).is_err());
}

fn polling_finds_what_blocking_would(engine: Engine) {
    let spin = Duration::from_micros(50);
    let mut core = Core::new(RingConfig { spin, ..on(engine) });
    let (socket, client) = pair(&mut core);
    core.ring.start_receive(socket);
    let mut client = resetting(client);
    let echo = std::thread::Builder::new().name("echo".to_owned()).spawn(move || {
        let mut buf = [0; 32];
        for _ in 0..2000 {
            client.write_all(&[7; 32]).unwrap();
            client.read_exact(&mut buf).unwrap();
        }
    });
    let mut bytes = 0;
    while bytes < 2000 * 32 {
        match core.next() {
            Completion::Received { lease, .. } => {
                bytes += lease.bytes();
                let reply = core.ring.bytes(&lease).to_vec();
                core.ring.release(lease);
                core.ring.send(socket, reply);
            }
            Completion::Sent { result, .. } => result.unwrap(),
            other => panic!("{other:?} while echoing"),
        }
    }
    while core.ring.stats().operations > 3 {
        core.turn(Duration::from_millis(10));
    }
    echo.unwrap().join().unwrap();
    let rest = core.settle(Duration::from_millis(20));
    core.drop_all(rest);
    // Whether polling ever pays depends on the machine; that it loses nothing doesn't.
    assert!(core.ring.stats().completions >= 4000);
}

fn out_of_descriptors_rests_and_goes_on(engine: Engine) {
    // The limit is the process's: a child of its own has it lowered.
    const CHILD: &str = "NET_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(CHILD).is_none() {
        let status = std::process::Command::new("sh")
            .args(["-c", "ulimit -n 48 && exec \"$0\" \"$@\""])
            .arg(std::env::current_exe().unwrap())
            .arg("--exact")
            .arg(format!("sockets::{engine}::out_of_descriptors_rests_and_goes_on"))
            .env(CHILD, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let mut core = Core::new(on(engine));
    let (_, addr) = core.listen();
    let mut sockets = Vec::new();
    let mut ours = Vec::new();
    // Our own ends take descriptors too; the last connections wait in the backlog.
    while let Ok(client) = TcpStream::connect(addr) {
        ours.push(client);
    }
    let freed = ours.split_off(ours.len() / 2);
    drop(ours);
    loop {
        match core.next() {
            Completion::Accepted { socket, .. } => sockets.push(socket),
            Completion::AcceptFailed { error, .. } => {
                assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
                break;
            }
            other => panic!("{other:?} while accepting"),
        }
    }
    let before = sockets.len();
    sockets.drain(..).for_each(|socket| core.ring.close(socket));
    drop(freed);
    let mut more = 0;
    while more == 0 {
        match core.next() {
            Completion::Accepted { .. } => more += 1,
            Completion::Closed { .. } | Completion::AcceptFailed { .. } => {}
            other => panic!("{other:?} while accepting again"),
        }
    }
    assert!(before > 0 && more > 0);
}

fn no_more_sockets_than_agreed_and_on_when_one_is_closed(engine: Engine) {
    const MAX: usize = 8;
    let mut core = Core::new(RingConfig { sockets_max: MAX, ..on(engine) });
    let (listener, addr) = core.listen();
    let mut clients = (0..3 * MAX).map(|_| TcpStream::connect(addr).unwrap()).collect::<Vec<_>>();
    let mut sockets = Vec::new();
    let mut told = 0;
    let mut take = |core: &mut Core, sockets: &mut Vec<net::SocketId>| {
        for completion in core.settle(Duration::from_millis(100)) {
            match completion {
                Completion::Accepted { socket, .. } => sockets.push(socket),
                Completion::AcceptFailed { error, .. } => {
                    assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
                    told += 1;
                }
                Completion::Closed { .. } => {}
                other => panic!("{other:?} while accepting"),
            }
        }
        assert_eq!(core.ring.stats().sockets as usize, MAX);
    };
    take(&mut core, &mut sockets);
    for _ in 0..2 {
        // Those dropped beyond the bound take no place; one that comes now does.
        clients.push(TcpStream::connect(addr).unwrap());
        core.ring.close(sockets.remove(0));
        take(&mut core, &mut sockets);
    }
    assert_eq!(told, 3, "once each time");
    core.ring.close(sockets.remove(0));
    core.ring.stop_listening(listener);
    let ends = core.settle(Duration::from_millis(100));
    assert!(ends.iter().any(|end| matches!(end, Completion::ListenerClosed { .. })), "{ends:?}");
    core.ring.close(sockets.remove(0));
    assert!(matches!(core.next(), Completion::Closed { .. }));
}
