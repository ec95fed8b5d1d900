//! The kernel: rings, sockets, files.
