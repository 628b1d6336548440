//! Ids, each with a type of its own, and the dense tables that they index.
//!
//! Dense ids exist in memory only: on the wire and in the journal a program is identified by its name.

use std::{
    fmt,
    marker::PhantomData,
    ops::{Index, IndexMut},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// The number of an event: 1, 2, 3 and so on, without a gap, and across epochs as long as the journal is kept.
    Seq(u64)
);
id!(
    /// One run of the daemon. A later epoch has a greater number.
    EpochId(u64)
);
id!(
    /// The number of a run of one program: 1 for its first start, 2 for the next. 0 is "never started".
    InstanceId(u64)
);
id!(
    /// A configured program, by its place in the configuration.
    ProgramId(u32)
);
id!(
    /// A dependency, by its place in the configuration.
    DependencyId(u32)
);
id!(
    /// A configured group, by its place in the configuration.
    GroupId(u32)
);

/// The name of a level. A group is at one level at a time, which determines which of its programs run.
pub type Level = Arc<str>;

/// A receiver of committed events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ActorId {
    /// The rules of a program.
    Program(ProgramId),
    /// The rules of a dependency.
    Dependency(DependencyId),
    /// The rules of a group.
    Group(GroupId),
    /// The rules of the shutdown.
    Shutdown,
}

/// The place of an event among those of all runs of the daemon.
///
/// The number alone is not unique: the numbers of events that never reached the disk before a crash are used again in
/// the next epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The epoch.
    pub epoch: EpochId,
    /// The event.
    pub seq: Seq,
}

/// An id that is the index of a dense table.
pub trait DenseId: Copy {
    /// The index this id stands for.
    fn index(self) -> usize;
    /// The id for an index.
    fn at(index: usize) -> Self;
}

macro_rules! dense {
    ($($name:ident)*) => {
        $(impl DenseId for $name {
            fn index(self) -> usize {
                self.0 as usize
            }
            fn at(index: usize) -> Self {
                Self(u32::try_from(index).unwrap_or(u32::MAX))
            }
        })*
    };
}

dense!(ProgramId DependencyId GroupId);

/// One value for each id of a graph, in the order of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IdVec<I, T> {
    rows: Vec<T>,
    #[serde(skip)]
    id: PhantomData<I>,
}

impl<I: DenseId, T> IdVec<I, T> {
    /// Adds a row and returns its id.
    pub fn push(&mut self, row: T) -> I {
        self.rows.push(row);
        I::at(self.rows.len() - 1)
    }

    /// The row of an id; `None` if the id is from another graph and out of range.
    pub fn get(&self, id: I) -> Option<&T> {
        self.rows.get(id.index())
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All rows in order.
    pub fn values(&self) -> std::slice::Iter<'_, T> {
        self.rows.iter()
    }

    /// All ids in order.
    pub fn ids(&self) -> impl Iterator<Item = I> + use<I, T> {
        (0..self.rows.len()).map(I::at)
    }

    /// All ids with their rows, in order.
    pub fn iter(&self) -> impl Iterator<Item = (I, &T)> {
        self.rows.iter().enumerate().map(|(i, row)| (I::at(i), row))
    }
}

impl<I, T> Default for IdVec<I, T> {
    fn default() -> Self {
        Self { rows: Vec::new(), id: PhantomData }
    }
}

impl<I, T> FromIterator<T> for IdVec<I, T> {
    fn from_iter<A: IntoIterator<Item = T>>(rows: A) -> Self {
        Self { rows: rows.into_iter().collect(), id: PhantomData }
    }
}

// An id is only made by the graph that sized the table, so an index out of range is a bug of gaggled, not an input.
// Ids that come from outside go through `get`.
impl<I: DenseId, T> Index<I> for IdVec<I, T> {
    type Output = T;
    fn index(&self, id: I) -> &T {
        &self.rows[id.index()]
    }
}

impl<I: DenseId, T> IndexMut<I> for IdVec<I, T> {
    fn index_mut(&mut self, id: I) -> &mut T {
        &mut self.rows[id.index()]
    }
}
