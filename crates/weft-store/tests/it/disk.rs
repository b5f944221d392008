//! A disk that keeps only what was synced. It has two images: what programs see, and what survives. It can lose power at
//! any access, ignore syncs, fail them, be full, and hold a sync until told otherwise.

use std::{
    collections::BTreeSet,
    io,
    ops::Range,
    sync::{Arc, Condvar, Mutex},
};

use redb::StorageBackend;
use weft_store::{Dice, Keep, OpenError, Redb};

/// A sector is written as a whole or not at all.
const SECTOR: usize = 512;
const BLOCK: usize = 4096;

#[derive(Debug, Clone, Default)]
pub struct Disk {
    shared: Arc<(Mutex<Image>, Condvar)>,
}

#[derive(Debug, Default)]
pub struct Image {
    pub live: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Op>,
    pub accesses: u64,
    pub syncs: u64,
    /// The accesses that cut something off.
    pub cuts: Vec<u64>,
    /// At which access the power goes.
    pub dies_at: Option<u64>,
    /// Which accesses fail, when later ones do not.
    pub fails: Range<u64>,
    pub ignores_syncs: bool,
    pub fails_syncs: bool,
    pub holds_syncs: bool,
    /// How many blocks may be in use.
    pub blocks: Option<usize>,
    /// A full disk of the kind that writes to a new place each time refuses each write.
    pub copies_on_write: bool,
    used: BTreeSet<usize>,
    /// A fingerprint of all accesses so far.
    pub trace: u64,
}

#[derive(Debug, Clone)]
enum Op {
    Write(usize, Vec<u8>),
    Len(usize),
}

impl Disk {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn holding(content: Vec<u8>) -> Self {
        let disk = Self::new();
        disk.set(|i| (i.live, i.durable) = (content.clone(), content));
        disk
    }

    pub fn set<T>(&self, f: impl FnOnce(&mut Image) -> T) -> T {
        let out = f(&mut self.shared.0.lock().unwrap());
        self.shared.1.notify_all();
        out
    }

    pub fn store(&self) -> Redb {
        self.store_with(Keep::default())
    }

    pub fn store_with(&self, keep: Keep) -> Redb {
        self.open(keep).unwrap()
    }

    pub fn open(&self, keep: Keep) -> Result<Redb, OpenError> {
        let disk = self.clone();
        Redb::open_on("test.redb".into(), Arc::new(move || Ok(Box::new(disk.clone()))), keep)
    }

    /// What was synced, and nothing else.
    pub fn synced(&self) -> Self {
        Self::holding(self.set(|i| i.durable.clone()))
    }

    /// What is found when the power comes back: what was synced and, as the dice will, nothing of the rest, a part of
    /// it in any mixture, torn at sectors, or all.
    pub fn after_crash(&self, dice: &mut Dice) -> Self {
        let (mut content, unsynced) = self.set(|i| (i.durable.clone(), i.unsynced.clone()));
        let kept_per_mille = [0, 500, 900, 1000][dice.below(4) as usize];
        for op in unsynced {
            match op {
                Op::Len(n) if dice.chance(kept_per_mille) => content.resize(n, 0),
                Op::Len(_) => {}
                Op::Write(at, data) => {
                    for (i, sector) in data.chunks(SECTOR).enumerate() {
                        let at = at + i * SECTOR;
                        if dice.chance(kept_per_mille) && at + sector.len() <= content.len() {
                            content[at..at + sector.len()].copy_from_slice(sector);
                        }
                    }
                }
            }
        }
        Self::holding(content)
    }
}

impl Op {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Len(n) => image.resize(*n, 0),
            Self::Write(at, data) => {
                let end = at + data.len();
                if image.len() < end {
                    image.resize(end, 0);
                }
                image[*at..end].copy_from_slice(data);
            }
        }
    }
}

impl Image {
    fn access(&mut self, what: u64) -> io::Result<()> {
        self.accesses += 1;
        self.trace = Dice::seeded(self.trace ^ what).roll();
        if self.dies_at.is_some_and(|n| self.accesses >= n) {
            return Err(io::Error::other("the power is off"));
        }
        if self.fails.contains(&self.accesses) {
            return Err(io::Error::other("the cable is loose"));
        }
        Ok(())
    }

    fn make_room(&mut self, at: usize, len: usize) -> io::Result<()> {
        let Some(most) = self.blocks else { return Ok(()) };
        for block in at / BLOCK..(at + len).div_ceil(BLOCK) {
            let new = !self.used.contains(&block);
            if (new || self.copies_on_write) && self.used.len() >= most {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            self.used.insert(block);
        }
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.set(|i| i.live.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.set(|i| {
            let at = offset as usize;
            let from = i.live.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(from);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.set(|i| {
            let op = Op::Len(len as usize);
            i.unsynced.push(op.clone());
            let cut = len < i.live.len() as u64;
            let outcome = i.access(len);
            if cut {
                let now = i.accesses;
                i.cuts.push(now);
            }
            outcome?;
            op.apply(&mut i.live);
            i.used.retain(|b| b * BLOCK < len as usize);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let (image, changed) = &*self.shared;
        let mut i = image.lock().unwrap();
        while i.holds_syncs {
            i = changed.wait(i).unwrap();
        }
        i.syncs += 1;
        let fails = i.fails_syncs;
        let outcome =
            i.access(1).and_then(|()| if fails { Err(io::Error::other("the cable is loose")) } else { Ok(()) });
        if i.dies_at.is_some_and(|n| i.accesses >= n) || i.ignores_syncs {
            return outcome;
        }
        // As a kernel does: what a sync could not write is never tried again, though programs go on seeing it.
        for op in std::mem::take(&mut i.unsynced) {
            if outcome.is_ok() {
                op.apply(&mut i.durable);
            }
        }
        outcome
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.set(|i| {
            let at = offset as usize;
            i.make_room(at, data.len())?;
            let op = Op::Write(at, data.to_vec());
            i.unsynced.push(op.clone());
            // Some of it will do to tell one write from another.
            i.access(data.iter().step_by(61).fold(offset, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(*b))))?;
            op.apply(&mut i.live);
            Ok(())
        })
    }
}
