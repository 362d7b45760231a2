//! The log as the source of a sink's delivery, and the sink's cursor there.
//!
//! A position is the sequence number of the stream. Events are read ahead within a bound. The cursor is a key
//! that is updated by revision ([`super::cursor`]): at the beginning of its term a driver makes it its own, so
//! that a driver before it can move it no more; an update that fails says that somebody else drives the sink,
//! and ends the term at once.
//!
//! What a destination rejected is a dead letter that all members share ([`super::requests`]); it is there before
//! the cursor passes it.

mod losses;
mod position;

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::jetstream::kv::{Operation, UpdateErrorKind};
use async_trait::async_trait;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{debug, error, warn};

use self::position::{Position, Queue};
use super::{
    Cluster,
    connection::Storage,
    cursor::{self, Cursor},
    driver::Term,
    lease, log_range, message,
    reading::{self, Decoded, Reading},
    requests::SinkRequests,
};
use crate::{
    base::{
        clock,
        event::{Event, Record, Seq},
        sync::lock,
    },
    config::Start,
    delivery::{source::Source, status::Status},
    journal::{Batch, DeadLetter, Journal, Replay, SetAside, StoreError},
};

/// Why events of the log are lost.
const LOST: &str = "the log no longer holds them";

/// Bytes of events that are read ahead for one sink.
const AHEAD: usize = 4 * 1024 * 1024;

/// How long to wait before what failed is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// How long the cursor rests after it was saved: under load one update stands for many events.
const PAUSE: Duration = Duration::from_millis(5);

/// How long a log that says nothing is waited for before it is asked whether it has more.
const SILENT: Duration = Duration::from_secs(5);

/// How often it is looked at what the log has, and whether the cursor is still there while there is nothing to save.
const CHECK: Duration = Duration::from_secs(5);

/// How long the last cursor may take to be saved at the end of a term: what is not saved is handed out again.
const LAST: Duration = Duration::from_secs(10);

/// The source of one term.
pub(crate) struct LogSource {
    cluster: Cluster,
    sink: Arc<str>,
    term: Term,
    storage: Arc<Storage>,
    /// For events of the relay's own.
    journal: Journal,
    status: Arc<Status>,
    requests: SinkRequests,
    begin: Cursor,
    queue: Mutex<Queue>,
    position: Mutex<Position>,
    signals: Signals,
}

#[derive(Debug, Default)]
struct Signals {
    /// Something is read, through this.
    readable: watch::Sender<Seq>,
    /// There is room in the queue.
    room: Notify,
    /// It is read again from the cursor.
    again: Notify,
    /// The cursor has moved, or is to be looked at.
    moved: Notify,
    progress: watch::Sender<u64>,
}

impl LogSource {
    /// Makes the cursor ours and begins there. Waits until that works, or the term is over.
    pub(crate) async fn open(
        cluster: &Cluster,
        sink: &str,
        start: Start,
        term: &Term,
        journal: &Journal,
        status: &Arc<Status>,
    ) -> Option<Arc<Self>> {
        loop {
            if !term.may_act() {
                return None;
            }
            let storage = cluster.storage().await;
            match cursor::claim(cluster, (&storage.cursors, &storage.log), sink, start).await {
                Ok((begin, revision)) => {
                    let at = begin.seq;
                    let stored = begin.stored;
                    let queue = Queue {
                        read: at,
                        read_stored: stored,
                        last: at,
                        reported_holes: begin.reported.clone(),
                        ..Queue::default()
                    };
                    let position = Position {
                        at,
                        stored,
                        behind: begin.behind.clone(),
                        saved: at,
                        saved_behind: begin.behind.clone(),
                        saved_reported: begin.reported.clone(),
                        revision,
                        is_left: false,
                        is_in_doubt: false,
                    };
                    let sink: Arc<str> = sink.into();
                    let most = journal.max_dead_letters();
                    return Some(Arc::new(Self {
                        cluster: cluster.clone(),
                        requests: SinkRequests::new(cluster, &storage, &sink, most),
                        sink,
                        term: term.clone(),
                        storage,
                        journal: journal.clone(),
                        status: Arc::clone(status),
                        begin,
                        queue: Mutex::new(queue),
                        position: Mutex::new(position),
                        signals: Signals { readable: watch::Sender::new(at), ..Signals::default() },
                    }));
                }
                Err(error) => {
                    warn!(sink, %error, "the sink's cursor cannot be had now");
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Reads ahead and saves the cursor, for as long as it is polled. Where the log has lost events, it ends the term.
    pub(crate) async fn keep(&self) {
        let kept = tokio::select! {
            kept = self.read_ahead() => kept,
            () = self.save() => return,
            () = self.watch_log() => return,
        };
        self.report_loss(kept);
        lock(&self.position).is_left = true;
        let leaving = async {
            while let Err(error) = self.leave_at(kept).await {
                debug!(sink = %self.sink, %error, "the cursor cannot be saved now");
                sleep(RETRY).await;
            }
        };
        // Where that fails, the next driver finds the loss once more.
        drop(timeout(self.cluster.settings().lease.0, leaving).await);
        self.term.lost.cancel();
        // Whoever polls this drops it now.
        pending::<()>().await;
    }

    /// Saves the last position; whether that worked.
    pub(crate) async fn flush(&self) -> bool {
        let deadline = Instant::now() + LAST;
        let saved = async {
            while self.unsaved().is_some() || self.requests.unwritten() > 0 {
                if !self.term.may_act() || lock(&self.position).is_left {
                    return false;
                }
                if !self.save_once().await {
                    sleep(RETRY).await;
                }
            }
            true
        };
        timeout_at(deadline, saved).await.unwrap_or(false)
    }

    /// Events that the sink has still to get, as far as that is known, and how long the oldest of them has been
    /// in the log.
    pub(super) fn lag(&self) -> (u64, Duration) {
        let queue = lock(&self.queue);
        let clock = self.cluster.clock();
        let age = queue.stored.front().map_or(Duration::ZERO, |(_, stored)| clock.since(*stored));
        (queue.waiting(), age)
    }

    /// Reads ahead until the log has lost events, or was made again: of before it has nothing behind this one.
    async fn read_ahead(&self) -> Seq {
        let mut reached = self.cluster.0.connection.reached.clone();
        let mut storages = self.cluster.0.storage.subscribe();
        loop {
            reached.mark_unchanged();
            let reading = tokio::select! {
                // What is there when a server is reached again, or something was made again, may be something else.
                Ok(()) = reached.changed() => Ok(None),
                Ok(()) = storages.changed() => Ok(None),
                () = self.signals.again.notified() => Ok(None),
                reading = self.read_on() => reading,
            };
            match reading {
                Ok(Some(kept)) => return kept,
                Ok(None) => {}
                Err(error) => debug!(sink = %self.sink, %error, "the log cannot be read now"),
            }
            sleep(RETRY).await;
        }
    }

    /// `Some`: it has lost what was behind that one.
    async fn read_on(&self) -> Result<Option<Seq>, async_nats::Error> {
        let (mut read, stored) = {
            let queue = lock(&self.queue);
            (queue.read, queue.read_stored)
        };
        if !self.term.may_act() {
            return Ok(None);
        }
        if let Some(kept) = cursor::moved(&self.storage.log, read, stored).await? {
            return Ok(Some(kept));
        }
        let mut reading = Reading::behind(&self.storage.log, read).await?;
        loop {
            while lock(&self.queue).bytes >= AHEAD {
                self.signals.room.notified().await;
            }
            let Some(message) = reading.next(SILENT).await? else {
                // The server that had the consumer may be gone.
                let last = self.storage.log.get_info().await?.state.last_sequence;
                if last == lock(&self.queue).read {
                    continue;
                }
                if last > read && self.is_deleted(read + 1, last).await? {
                    lock(&self.queue).end_is_missing(read, last);
                }
                return Ok(None);
            };
            let info = message.info()?;
            let (seq, pending) = (info.stream_sequence, info.pending);
            let stored = clock::millis(info.published);
            let decoded =
                reading::decode(&self.storage.log, &message, self.cluster.clock()).await?;
            let mut queue = lock(&self.queue);
            if queue.read != read {
                // It was emptied, to be read again from the cursor, or what follows was deleted.
                return Ok(None);
            }
            if seq <= read {
                continue;
            }
            queue.miss(read + 1, seq - 1);
            read = seq;
            (queue.read, queue.read_stored) = (seq, stored);
            queue.stored.push_back((seq, stored));
            let record = match decoded {
                Decoded::Piece => continue,
                Decoded::Lost => {
                    error!(sink = %self.sink, seq, "a piece of a large event is not in the log any more");
                    queue.miss(seq, seq);
                    continue;
                }
                Decoded::Event(record) => record,
            };
            let member = message.headers.as_ref().map_or("", message::member);
            self.cluster.check_copies(&record, member);
            let lost = std::mem::take(&mut queue.lost);
            queue.last = queue.last.max(seq + pending);
            queue.bytes += record.event.weight();
            queue.events.push_back((lost, record));
            drop(queue);
            self.signals.readable.send_replace(seq);
        }
    }

    /// Saves the cursor where the sink goes on in a log that has lost what was behind `kept`: that is reported.
    async fn leave_at(&self, kept: Seq) -> Result<(), async_nats::Error> {
        while self.requests.unwritten() > 0 {
            if !self.requests.write_one().await {
                return Err("the dead letters cannot be written now".into());
            }
        }
        let (at, stored, (seq, behind)) = {
            let position = lock(&self.position);
            (position.at, position.stored, position.within(kept))
        };
        let stored =
            if seq == at { stored } else { cursor::stored(&self.storage.log, seq).await? };
        let (member, run) = (self.cluster.member().to_owned(), self.cluster.run().to_owned());
        let reported = lock(&self.queue).reported_within(kept);
        let cursor = Cursor { seq, stored, behind, reported, member, run };
        cursor::set(&self.storage.cursors, &self.sink, &cursor).await?;
        Ok(())
    }

    /// What is to be saved, where anything is.
    fn unsaved(&self) -> Option<(Cursor, u64)> {
        let reported = lock(&self.queue).reported_holes.clone();
        let position = lock(&self.position);
        let is_saved = position.at <= position.saved
            && position.behind == position.saved_behind
            && reported == position.saved_reported;
        if is_saved && !position.is_in_doubt {
            return None;
        }
        let cursor = Cursor {
            seq: position.at,
            stored: position.stored,
            behind: position.behind.clone(),
            reported,
            member: self.cluster.member().to_owned(),
            run: self.cluster.run().to_owned(),
        };
        Some((cursor, position.revision))
    }

    async fn save(&self) {
        let mut storages = self.cluster.0.storage.subscribe();
        loop {
            if self.unsaved().is_none() && self.requests.unwritten() == 0 {
                tokio::select! {
                    () = self.signals.moved.notified() => {}
                    Ok(()) = storages.changed() => self.check_cursor().await,
                    () = sleep(CHECK) => self.check_cursor().await,
                }
                continue;
            }
            let saved = self.save_once().await;
            sleep(if saved { PAUSE } else { RETRY }).await;
        }
    }

    /// Saves what was set aside, and then the cursor as it was before: a dead letter is there before the
    /// cursor passes its event. `false`: it is to be tried again.
    async fn save_once(&self) -> bool {
        let unsaved = self.unsaved();
        let unwritten = self.requests.unwritten();
        for _ in 0..unwritten {
            if !self.requests.write_one().await {
                return false;
            }
        }
        if unwritten > 0 {
            self.signals.progress.send_modify(|count| *count += 1);
        }
        let Some((cursor, revision)) = unsaved else { return true };
        let value = serde_json::to_vec(&cursor).unwrap_or_default();
        let patience = lease::patience(self.cluster.settings().lease.0);
        let update = self.storage.cursors.update(&*self.sink, value.into(), revision);
        match timeout(patience, update).await {
            Ok(Ok(revision)) => {
                self.saved(&cursor, revision);
                true
            }
            Ok(Err(error)) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                self.find_out(&cursor, revision, patience).await
            }
            Ok(Err(error)) if error.kind() == UpdateErrorKind::Other => {
                // Nobody answers for the bucket: it has no leader at the moment, or was deleted.
                if self.cluster.0.connection.lacks_bucket("cursor").await {
                    self.cluster.log_is_gone();
                }
                false
            }
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// Looks whether the cursor is there as it was saved. It may have been deleted, or made again at another place:
    /// while the sink lags nothing else would save it.
    async fn check_cursor(&self) {
        let revision = lock(&self.position).revision;
        let patience = lease::patience(self.cluster.settings().lease.0);
        let entry = timeout(patience, self.storage.cursors.entry(&*self.sink)).await;
        // A bucket that is not there is made again.
        let Ok(Ok(entry)) = entry else { return };
        let found = entry.filter(|entry| entry.revision == revision);
        let found = found.and_then(|entry| serde_json::from_slice::<Cursor>(&entry.value).ok());
        let is_there = found.is_some_and(|found| found.run == self.cluster.run());
        // The server that answers may be behind: only whoever saves finds out.
        lock(&self.position).is_in_doubt = !is_there;
    }

    /// The cursor is not at the revision at which it was saved; whether it is saved now.
    async fn find_out(&self, cursor: &Cursor, revision: u64, patience: Duration) -> bool {
        let entry = timeout(patience, self.storage.cursors.entry(&*self.sink)).await;
        let Ok(Ok(entry)) = entry else { return false };
        let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else {
            warn!(sink = %self.sink, "the sink's cursor was deleted: it is made again");
            let made = cursor::make(&self.storage.cursors, &self.sink, cursor);
            let Ok(Ok(Some(revision))) = timeout(patience, made).await else { return false };
            self.saved(cursor, revision);
            return true;
        };
        let found: Cursor = serde_json::from_slice(&entry.value).unwrap_or_default();
        if found.run == self.cluster.run() && entry.revision >= revision {
            // The answer to an earlier request was lost.
            self.saved(&found, entry.revision);
            return entry.revision > revision;
        }
        if found.run.is_empty() {
            // It was made again, and nobody has driven the sink since.
            lock(&self.position).revision = entry.revision;
            return false;
        }
        error!(
            sink = %self.sink, member = found.member,
            "another member has moved the sink's cursor: this one stops at once"
        );
        self.term.lost.cancel();
        false
    }

    fn saved(&self, cursor: &Cursor, revision: u64) {
        let mut position = lock(&self.position);
        position.saved = position.saved.max(cursor.seq);
        position.revision = revision;
        position.is_in_doubt = false;
        position.saved_behind.clone_from(&cursor.behind);
        position.saved_reported.clone_from(&cursor.reported);
        drop(position);
        self.signals.progress.send_modify(|count| *count += 1);
    }

    fn batch(&self, after: Seq, limit: usize, max_bytes: usize) -> Option<Batch> {
        let mut queue = lock(&self.queue);
        queue.pop(after);
        if queue.bytes < AHEAD {
            self.signals.room.notify_one();
        }
        let lost = queue.events.front()?.0;
        let mut bytes = 0;
        let mut records = Vec::new();
        for (before, record) in queue.events.iter().take(limit.max(1)) {
            if !records.is_empty() && (*before > 0 || bytes >= max_bytes) {
                break;
            }
            bytes += record.event.weight();
            records.push(Arc::clone(record));
        }
        let through = records.last()?.seq;
        Some(Batch { records, lost, through })
    }
}

#[async_trait]
impl Source for LogSource {
    fn cursor(&self) -> Seq {
        self.begin.seq
    }

    fn saved(&self) -> Seq {
        lock(&self.position).saved
    }

    fn advance(&self, seq: Seq, _urgent: bool) {
        let stored = lock(&self.queue).done(seq);
        let mut position = lock(&self.position);
        if seq > position.at {
            (position.at, position.stored) = (seq, stored);
        }
        drop(position);
        self.signals.moved.notify_one();
    }

    fn progress(&self) -> watch::Receiver<u64> {
        self.signals.progress.subscribe()
    }

    fn last(&self) -> Seq {
        lock(&self.queue).last()
    }

    fn try_next(&self, after: Seq, limit: usize, max_bytes: usize) -> Option<Batch> {
        self.batch(after, limit, max_bytes)
    }

    async fn next(&self, after: Seq, limit: usize, max_bytes: usize) -> Result<Batch, StoreError> {
        let mut readable = self.signals.readable.subscribe();
        loop {
            readable.mark_unchanged();
            if let Some(batch) = self.batch(after, limit, max_bytes) {
                return Ok(batch);
            }
            // The sender is here.
            drop(readable.changed().await);
        }
    }

    fn unreported(&self, lost: u64) -> u64 {
        let count = lock(&self.queue).report_first(lost);
        self.signals.moved.notify_one();
        count
    }

    fn lost_cause(&self) -> &'static str {
        LOST
    }

    fn may_send(&self) -> bool {
        self.term.may_act()
    }

    fn read_again(&self) {
        let (read, read_stored) = {
            let position = lock(&self.position);
            (position.at, position.stored)
        };
        let mut queue = lock(&self.queue);
        let (last, reported_holes) = (queue.last, std::mem::take(&mut queue.reported_holes));
        *queue = Queue { read, read_stored, reported_holes, last, ..Queue::default() };
        drop(queue);
        self.signals.again.notify_one();
    }

    async fn accepted_behind(&self) -> Vec<Seq> {
        self.begin.behind.clone()
    }

    fn keep_accepted_behind(&self, seqs: &[Seq]) {
        lock(&self.position).behind = seqs.to_vec();
        self.signals.moved.notify_one();
    }

    async fn read(
        &self,
        after: Seq,
        through: Seq,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Batch, StoreError> {
        let (log, clock) = (&self.storage.log, self.cluster.clock());
        let read = log_range::read(log, clock, (after, through), limit, max_bytes).await;
        read.map_err(|error| StoreError::Elsewhere(format!("the log cannot be read now: {error}")))
    }

    fn requests(&self) -> watch::Receiver<u64> {
        self.cluster.0.requests.subscribe()
    }

    async fn pending_requests(&self) -> Result<(Vec<DeadLetter>, Vec<Replay>), StoreError> {
        self.requests.pending().await
    }

    fn dead_letter(&self, record: &Arc<Record>, reason: &str) -> SetAside {
        let done = self.requests.dead_letter(record, reason);
        self.signals.moved.notify_one();
        done
    }

    fn rejected_again(&self, number: i64, reason: &str) {
        self.requests.rejected_again(number, reason);
        self.signals.moved.notify_one();
    }

    fn remove_dead_letter(&self, number: i64) {
        self.requests.remove(number);
        self.signals.moved.notify_one();
    }

    fn replay_progress(&self, number: i64, position: Option<Seq>) {
        self.requests.replay_progress(number, position);
        self.signals.moved.notify_one();
    }

    fn append(&self, event: Event) {
        self.journal.append(&mut vec![event]);
    }
}
