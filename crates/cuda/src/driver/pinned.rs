//! Host memory that the device copies from and to by itself.
use super::gpu::Stream;
use anyfleet_tensor::Result;
use cudarc::driver::{result, sys};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, Scope};

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
    fn send<'a>(&mut self, at: usize, address: u64, bytes: &'a [u8], helpers: &Helpers<'a>) -> Result<()> {
        // SAFETY: no copy of this range is under way, and nobody else has the memory, which outlives the helpers.
        let room = unsafe { std::slice::from_raw_parts_mut(self.bytes.add(at), bytes.len()) };
        helpers.copy(room, bytes);
        self.stream.with(|| {
            // SAFETY: the tensor has room for the bytes; the memory stays until the event has passed.
            let from = unsafe { self.bytes.add(at) };
            // SAFETY: as above.
            unsafe { sys::cuMemcpyHtoDAsync_v2(address, from.cast(), bytes.len(), self.stream.raw).result() }
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

/// Where to and what from.
type Part<'a> = (&'a mut [u8], &'a [u8]);

/// Threads that copy parts of a large write. Not those of a pool: they may all be waiting for the memory it goes through.
struct Helpers<'a> {
    parts: Vec<Sender<Part<'a>>>,
    done: Receiver<()>,
}

impl<'a> Helpers<'a> {
    /// Nobody.
    fn none() -> Helpers<'a> {
        Helpers { parts: Vec::new(), done: channel().1 }
    }

    /// At most `count`, fewer where the system gives no more. They end when this is dropped.
    fn new<'scope>(scope: &'scope Scope<'scope, '_>, count: usize) -> Helpers<'a>
    where
        'a: 'scope,
    {
        let (finished, done) = channel();
        let helper = || {
            let (sender, parts) = channel::<Part<'a>>();
            let finished = finished.clone();
            let work = move || {
                for (to, from) in parts {
                    to.copy_from_slice(from);
                    // Whoever asked waits for it.
                    let _ = finished.send(());
                }
            };
            Builder::new().name("write".into()).spawn_scoped(scope, work).ok().map(|_| sender)
        };
        Helpers { parts: (0..count).map_while(|_| helper()).collect(), done }
    }

    /// Copies `from` to `to`, a share each and the rest on this thread, and waits for all of it.
    fn copy(&self, mut to: &'a mut [u8], mut from: &'a [u8]) {
        let mut given = 0;
        for helper in &self.parts {
            if from.len() <= SHARE {
                break;
            }
            let (own_to, rest_to) = std::mem::take(&mut to).split_at_mut(SHARE);
            let (own_from, rest_from) = from.split_at(SHARE);
            (to, from) = (rest_to, rest_from);
            match helper.send((own_to, own_from)) {
                Ok(()) => given += 1,
                Err(error) => error.0.0.copy_from_slice(error.0.1),
            }
        }
        to.copy_from_slice(from);
        (0..given).for_each(|_| self.done.recv().expect("a helper copies what it was given"));
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
    pub(super) fn write(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        if bytes.len() <= SHARE {
            return self.write_with(address, bytes, &Helpers::none());
        }
        let most = bytes.len().min(PIECE).div_ceil(SHARE) - 1;
        std::thread::scope(|scope| self.write_with(address, bytes, &Helpers::new(scope, most)))
    }

    fn write_with<'a>(&mut self, mut address: u64, bytes: &'a [u8], helpers: &Helpers<'a>) -> Result<()> {
        for part in bytes.chunks(PIECE) {
            if self.used + part.len() > PIECE {
                // One event for all copies of a piece: most are small, and on the way of a step.
                self.pieces[self.current].mark()?;
                self.current = (self.current + 1) % self.pieces.len();
                self.used = 0;
                // Its last copy may be under way.
                self.pieces[self.current].wait()?;
            }
            self.pieces[self.current].send(self.used, address, part, helpers)?;
            self.used = (self.used + part.len()).next_multiple_of(ALIGN);
            address += part.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_whole_with_any_number_of_helpers() {
        let sizes = [0, 1, SHARE - 1, SHARE, SHARE + 1, 2 * SHARE, 3 * SHARE + 7, PIECE - 1, PIECE];
        let from: Vec<u8> = (0..PIECE as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut to: Vec<Vec<u8>> = sizes.iter().chain(&sizes).map(|&size| vec![0; size]).collect();
        // Nobody is what is left where the system gives no thread.
        let (alone, helped) = to.split_at_mut(sizes.len());
        fn all<'a>(helpers: &Helpers<'a>, to: &'a mut [Vec<u8>], from: &'a [u8]) {
            for to in to {
                let len = to.len();
                helpers.copy(to, &from[..len]);
            }
        }
        all(&Helpers::none(), alone, &from);
        std::thread::scope(|scope| all(&Helpers::new(scope, 3), helped, &from));
        assert!(to.iter().all(|to| *to == from[..to.len()]));
    }
}
