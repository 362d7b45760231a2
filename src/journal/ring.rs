//! The newest events, in memory. Their numbers follow each other without a hole.

use std::{collections::VecDeque, sync::Arc};

use crate::base::event::{Record, Seq};

#[derive(Debug, Default)]
pub(super) struct Ring {
    records: VecDeque<Arc<Record>>,
    /// Bytes of all of them.
    pub(super) bytes: usize,
    /// Bytes of those that are not on disk.
    pub(super) unwritten_bytes: usize,
}

impl Ring {
    pub(super) fn push(&mut self, record: Record) {
        let weight = record.event.weight();
        self.bytes += weight;
        self.unwritten_bytes += weight;
        self.records.push_back(Arc::new(record));
    }

    /// Drops the oldest; `written`: it is on disk.
    pub(super) fn pop(&mut self, written: bool) {
        let Some(first) = self.records.pop_front() else { return };
        let weight = first.event.weight();
        self.bytes -= weight;
        if !written {
            self.unwritten_bytes = self.unwritten_bytes.saturating_sub(weight);
        }
    }

    /// The number of the oldest.
    pub(super) fn first(&self) -> Option<Seq> {
        self.records.front().map(|record| record.seq)
    }

    pub(super) fn get(&self, seq: Seq) -> Option<&Arc<Record>> {
        let index = seq.checked_sub(self.first()?)?;
        self.records.get(usize::try_from(index).ok()?)
    }

    /// Those with a number after `after`.
    pub(super) fn after(&self, after: Seq) -> impl Iterator<Item = &Arc<Record>> {
        let skip = self.first().map_or(0, |first| (after + 1).saturating_sub(first));
        self.records.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX))
    }

    /// Those after `after`, through `through`: at most `limit`, and about `max_bytes`.
    pub(super) fn slice(
        &self,
        after: Seq,
        through: Seq,
        limit: usize,
        max_bytes: usize,
    ) -> Vec<Arc<Record>> {
        let mut bytes = 0;
        let fits = |record: &&Arc<Record>| {
            let fits = bytes < max_bytes && record.seq <= through;
            bytes += record.event.weight();
            fits
        };
        self.after(after).take(limit).take_while(fits).cloned().collect()
    }

    /// These are on disk now. What the ring has dropped meanwhile, it has taken off already.
    pub(super) fn written(&mut self, records: &[Arc<Record>]) {
        let first = self.first().unwrap_or(Seq::MAX);
        let here = records.iter().filter(|record| record.seq >= first);
        let bytes: usize = here.map(|record| record.event.weight()).sum();
        self.unwritten_bytes = self.unwritten_bytes.saturating_sub(bytes);
    }

    /// Exactly what stands through `seq` is on disk.
    pub(super) fn written_through(&mut self, seq: Seq) {
        self.unwritten_bytes = self.after(seq).map(|record| record.event.weight()).sum();
    }
}
