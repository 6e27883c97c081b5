//! What must hold, by what was acknowledged: the reference of the long random test.
//!
//! Each client has names of its own, so for these the model is sequential and exact. A call that was cut off is repeated
//! until it is answered, or undone by its opposite, before the next step of that client; so what is in doubt never
//! outlives a step.

use orlop::csi::proto::{VolumeContentSource, VolumeGroupSnapshot};

use crate::client::Create;
use crate::life::{Kind, MIB};
use crate::random::Random;
use crate::soak_world::PoolIn;

/// So many files a volume may have; of a device so many parts.
pub(crate) const FILES: usize = 3;
/// Each part of a device begins at a multiple of this.
pub(crate) const PART: u64 = MIB;
/// No file is longer, and each part of a device has this length.
pub(crate) const LONGEST: usize = 192 << 10;

/// What was written and flushed: bytes that a seed makes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) seed: u64,
    pub(crate) length: usize,
}

impl Piece {
    pub(crate) fn new(random: &mut Random) -> Self {
        Self { seed: random.next(), length: 1 + random.index(LONGEST) }
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        let mut random = Random(self.seed);
        let mut bytes = Vec::with_capacity(self.length + 8);
        while bytes.len() < self.length {
            bytes.extend(random.next().to_le_bytes());
        }
        bytes.truncate(self.length);
        bytes
    }
}

/// A file that tells by itself whether it is whole.
pub(crate) fn sealed(piece: Piece) -> Vec<u8> {
    let mut bytes = piece.seed.to_le_bytes().to_vec();
    bytes.extend(u64::try_from(piece.length).unwrap().to_le_bytes());
    bytes.extend(piece.bytes());
    bytes
}

pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().unwrap()));
    let (Some(seed), Some(length)) = (number(0), number(8)) else { return false };
    let length = usize::try_from(length).unwrap();
    length <= LONGEST && bytes == sealed(Piece { seed, length })
}

pub(crate) type Content = [Option<Piece>; FILES];

/// What CreateVolume is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) kind: Kind,
    pub(crate) create: Create,
    pub(crate) source: Option<VolumeContentSource>,
    /// What it begins with.
    pub(crate) content: Content,
    pub(crate) on_delete: &'static str,
}

/// A volume that exists.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) wish: Wish,
    pub(crate) id: String,
    pub(crate) size: u64,
    pub(crate) pool: PoolIn,
    pub(crate) staged: bool,
    /// What is published, and whether it is read-only.
    pub(crate) targets: [Option<bool>; 2],
    pub(crate) content: Content,
    pub(crate) on_delete: &'static str,
    /// It is a copy, or one was made of it: its blocks may be shared.
    pub(crate) may_share: bool,
}

impl Volume {
    pub(crate) fn kind(&self) -> Kind {
        self.wish.kind
    }

    pub(crate) fn is_published(&self) -> bool {
        self.targets.iter().any(Option::is_some)
    }

    pub(crate) fn is_used(&self) -> bool {
        self.staged || self.is_published()
    }

    /// Somebody may write. A filesystem of its own may write by itself while it is mounted anywhere.
    pub(crate) fn is_written(&self) -> bool {
        match self.kind() {
            Kind::Hostpath => self.staged || self.targets.contains(&Some(false)),
            Kind::Ext4 | Kind::Xfs | Kind::Btrfs | Kind::Block => self.is_used(),
        }
    }
}

/// A snapshot that exists.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    /// The volume that it was taken of, which may have gone.
    pub(crate) of: String,
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    pub(crate) pool: PoolIn,
    pub(crate) content: Content,
}

/// A group of snapshots that exists.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) told: VolumeGroupSnapshot,
    /// In the order of their ids.
    pub(crate) sources: Vec<String>,
    pub(crate) members: Vec<Snapshot>,
}

/// What a deleted volume left, because its `onDelete` said so.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) pool: PoolIn,
    /// `retained/` or `archive/`, and its name there.
    pub(crate) place: String,
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    pub(crate) content: Content,
}

/// A name of a volume, and what it has.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) volume: Option<Volume>,
    /// The last id that the name had before.
    pub(crate) past: Option<String>,
}

impl Slot {
    /// The id that it has, or had.
    pub(crate) fn any_id(&self) -> Option<String> {
        self.volume.as_ref().map(|volume| volume.id.clone()).or_else(|| self.past.clone())
    }
}

/// What a step must be answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Done,
    Refused(tonic::Code),
    /// The model cannot tell: done, or refused with one of these.
    Either(&'static [tonic::Code]),
}
