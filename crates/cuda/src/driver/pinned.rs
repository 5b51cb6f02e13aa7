//! Host memory that the device copies from and to by itself.
use super::gpu::Stream;
use anyfleet_tensor::Result;
use cudarc::driver::{result, sys};
use std::sync::Arc;

/// Bytes of a piece that is copied at once: enough that a copy takes longer than starting one.
const PIECE: usize = 8 << 20;
/// Pieces on their way at a time.
const PIECES: usize = 3;
/// Alignment of small writes inside a piece.
const ALIGN: usize = 64;
/// Bytes that one thread copies.
const SHARE: usize = 2 << 20;

/// Page-locked memory and an event of its last copy.
pub(super) struct Pinned {
    stream: Arc<Stream>,
    bytes: *mut u8,
    len: usize,
    event: sys::CUevent,
}

// SAFETY: memory and a handle that any thread may use; whoever owns it is alone with it.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn new(stream: &Arc<Stream>, len: usize) -> Result<Pinned> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        // SAFETY: plain allocations; the memory is written before it is read.
        let bytes = stream.with(|| unsafe {
            let bytes = result::malloc_host(len, 0)?.cast::<u8>();
            bytes.write_bytes(0, len);
            Ok(bytes)
        })?;
        match stream.with(|| result::event::create(flags)) {
            Ok(event) => Ok(Pinned { stream: stream.clone(), bytes, len, event }),
            Err(error) => {
                // SAFETY: it was allocated right before.
                let _ = stream.with(|| unsafe { result::free_host(bytes.cast()) });
                Err(error)
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// What arrived, after [`Pinned::wait`].
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the memory was set when it was made, and no copy into it is under way.
        unsafe { std::slice::from_raw_parts(self.bytes, self.len) }
    }

    /// Starts a copy from the device.
    pub(super) fn fetch(&self, address: u64, bytes: usize) -> Result<()> {
        self.stream.with(|| {
            // SAFETY: the tensor has these bytes, the memory has room for them, and it is not looked at before the event.
            unsafe {
                if bytes > 0 {
                    sys::cuMemcpyDtoHAsync_v2(self.bytes.cast(), address, bytes, self.stream.raw).result()?;
                }
                result::event::record(self.event, self.stream.raw)
            }
        })
    }

    /// Waits for the last copy.
    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the event lives.
        self.stream.with(|| unsafe { result::event::synchronize(self.event) })
    }

    /// Starts a copy of `bytes` to the device, by way of the memory from `at` on.
    fn send(&mut self, at: usize, address: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: no copy of this range is under way, and nobody else has the memory.
        let room = unsafe { std::slice::from_raw_parts_mut(self.bytes.add(at), bytes.len()) };
        let (first, rest) = bytes.split_at(bytes.len().min(SHARE));
        let (first_room, rest_room) = room.split_at_mut(first.len());
        // Not those of a pool: they may all be waiting for this memory.
        std::thread::scope(|scope| {
            for (to, from) in rest_room.chunks_mut(SHARE).zip(rest.chunks(SHARE)) {
                scope.spawn(|| to.copy_from_slice(from));
            }
            first_room.copy_from_slice(first);
        });
        self.stream.with(|| {
            // SAFETY: the tensor has room for the bytes; the memory stays until the event has passed.
            unsafe { sys::cuMemcpyHtoDAsync_v2(address, room.as_ptr().cast(), bytes.len(), self.stream.raw).result() }
        })
    }

    /// Makes [`Pinned::wait`] wait for what was sent so far.
    fn mark(&self) -> Result<()> {
        // SAFETY: event and stream live.
        self.stream.with(|| unsafe { result::event::record(self.event, self.stream.raw) })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.stream.with(|| {
            // SAFETY: a copy that is under way is waited for before its memory goes.
            unsafe {
                let _ = result::stream::synchronize(self.stream.raw);
                let _ = result::event::destroy(self.event);
                result::free_host(self.bytes.cast())
            }
        });
    }
}

/// What writes go through: pieces in turn, small writes side by side in one.
pub(super) struct Staging {
    pieces: Vec<Pinned>,
    current: usize,
    used: usize,
}

impl Staging {
    pub(super) fn new(stream: &Arc<Stream>) -> Result<Staging> {
        let pieces = (0..PIECES).map(|_| Pinned::new(stream, PIECE)).collect::<Result<_>>()?;
        Ok(Staging { pieces, current: 0, used: 0 })
    }

    /// Copies `bytes` to the device in call order; they may change when it returns.
    pub(super) fn write(&mut self, mut address: u64, bytes: &[u8]) -> Result<()> {
        for part in bytes.chunks(PIECE) {
            if self.used + part.len() > PIECE {
                // One event for all copies of a piece: most are small, and on the way of a step.
                self.pieces[self.current].mark()?;
                self.current = (self.current + 1) % self.pieces.len();
                self.used = 0;
                // Its last copy may be under way.
                self.pieces[self.current].wait()?;
            }
            self.pieces[self.current].send(self.used, address, part)?;
            self.used = (self.used + part.len()).next_multiple_of(ALIGN);
            address += part.len() as u64;
        }
        Ok(())
    }
}
