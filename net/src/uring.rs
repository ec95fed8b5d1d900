//! The io_uring engine. Not here yet: a ring can't be made, so nothing can be called on one.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::buf::StaticRegion;
use crate::file::DataFile;
use crate::probe::probe;
use crate::ring::{
    Completion, DiskRead, DiskWrite, FileId, ListenerId, MemoryUse, RingConfig, RingError,
    RingStats, SocketId, TcpListen,
};

/// Bytes on loan from a receive buffer.
#[derive(Debug)]
pub struct RecvLease {
    never: Uring,
}

/// A bell that ends a ring's wait from any thread.
#[derive(Debug, Clone)]
pub struct Doorbell {
    never: Uring,
}

impl Doorbell {
    /// Ends the ring's wait, now or the next one.
    pub fn knock(&self) {
        match self.never {}
    }
}

impl RecvLease {
    /// Bytes received, at least 1.
    pub fn bytes(&self) -> usize {
        match self.never {}
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Uring {}

impl Uring {
    pub(crate) fn new(_: RingConfig) -> Result<Self, RingError> {
        match probe() {
            Ok(_) => Err(RingError::Config("this build has no engine")),
            Err(refusal) => Err(RingError::Refused(refusal)),
        }
    }

    pub(crate) fn wait(
        &mut self,
        _: Option<Duration>,
        _: &mut Vec<Completion>,
    ) -> Result<(), RingError> {
        match *self {}
    }

    pub(crate) fn listen(&mut self, _: TcpListen) -> io::Result<(ListenerId, SocketAddr)> {
        match *self {}
    }

    pub(crate) fn stop_listening(&mut self, _: ListenerId) {
        match *self {}
    }

    pub(crate) fn connect(&mut self, _: SocketAddr) -> io::Result<SocketId> {
        match *self {}
    }

    pub(crate) fn start_receive(&mut self, _: SocketId) {
        match *self {}
    }

    pub(crate) fn pause_receive(&mut self, _: SocketId) {
        match *self {}
    }

    pub(crate) fn bytes(&self, _: &RecvLease) -> &[u8] {
        match *self {}
    }

    pub(crate) fn release(&mut self, _: RecvLease) {
        match *self {}
    }

    pub(crate) fn send(&mut self, _: SocketId, _: Vec<u8>) {
        match *self {}
    }

    pub(crate) fn shutdown_write(&mut self, _: SocketId) {
        match *self {}
    }

    pub(crate) fn close(&mut self, _: SocketId) {
        match *self {}
    }

    pub(crate) fn add_file(&mut self, _: DataFile) -> Result<FileId, DataFile> {
        match *self {}
    }

    pub(crate) fn remove_file(&mut self, _: FileId) {
        match *self {}
    }

    pub(crate) fn write_durable(&mut self, _: DiskWrite) {
        match *self {}
    }

    pub(crate) fn read(&mut self, _: DiskRead) {
        match *self {}
    }

    pub(crate) fn sync_data(&mut self, _: FileId, _: u64) {
        match *self {}
    }

    pub(crate) fn register_memory(&mut self, _: &[StaticRegion]) -> MemoryUse {
        match *self {}
    }

    pub(crate) fn doorbell(&self) -> Doorbell {
        match *self {}
    }

    pub(crate) fn knock(&mut self, _: &Doorbell) {
        match *self {}
    }

    pub(crate) fn stats(&self) -> RingStats {
        match *self {}
    }
}
