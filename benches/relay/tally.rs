//! Counting what arrives: how many, how many twice, in which order, how late.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use astro_relay::base::clock;
use tokio::time::Instant;

/// What has arrived so far; clones share it.
#[derive(Clone)]
pub struct Tally(Arc<Shared>);

#[derive(Default)]
struct Shared {
    distinct: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    seen: Vec<u64>,
    /// Of each room: order is promised within a room.
    highest: Vec<Option<u64>>,
    repeated: u64,
    reordered: u64,
    late: Vec<u32>,
    last_at: Option<Instant>,
}

/// The sum of it.
#[derive(Debug, Clone, Default)]
pub struct Sum {
    pub delivered: u64,
    pub repeated: u64,
    pub reordered: u64,
    /// p50, p90, p99, p99.9 from the gateway's sending to the consumer's receipt.
    pub latency: [Duration; 4],
    pub last_at: Option<Instant>,
}

impl Tally {
    /// For messages whose rooms take turns.
    pub fn of(rooms: usize) -> Self {
        let inner = Inner { highest: vec![None; rooms], ..Inner::default() };
        Self(Arc::new(Shared { inner: Mutex::new(inner), ..Shared::default() }))
    }

    /// Takes the payload of one message, or of several in a row.
    pub fn take<'a>(&self, payloads: impl IntoIterator<Item = &'a [u8]>) {
        let now = clock::now_micros();
        let mut inner = self.0.inner.lock().unwrap();
        let mut fresh = 0;
        for payload in payloads {
            let Some((number, sent)) = numbers(payload) else { continue };
            let (word, bit) = ((number / 64) as usize, 1_u64 << (number % 64));
            if inner.seen.len() <= word {
                inner.seen.resize(word + 1024, 0);
            }
            if inner.seen[word] & bit != 0 {
                inner.repeated += 1;
                continue;
            }
            inner.seen[word] |= bit;
            fresh += 1;
            let room = number as usize % inner.highest.len();
            if inner.highest[room].is_some_and(|highest| number < highest) {
                inner.reordered += 1;
            } else {
                inner.highest[room] = Some(number);
            }
            inner.late.push(u32::try_from(now.saturating_sub(sent)).unwrap_or(u32::MAX));
        }
        inner.last_at = Some(Instant::now());
        drop(inner);
        self.0.distinct.fetch_add(fresh, Ordering::Release);
    }

    /// How many different messages have arrived.
    pub fn count(&self) -> u64 {
        self.0.distinct.load(Ordering::Acquire)
    }

    /// What it comes to.
    pub fn sum(&self) -> Sum {
        let mut inner = self.0.inner.lock().unwrap();
        inner.late.sort_unstable();
        let at = |share: f64| {
            let index = ((inner.late.len() as f64) * share) as usize;
            let micros = inner.late.get(index.min(inner.late.len().saturating_sub(1)));
            Duration::from_micros(u64::from(micros.copied().unwrap_or(0)))
        };
        Sum {
            delivered: self.count(),
            repeated: inner.repeated,
            reordered: inner.reordered,
            latency: [at(0.5), at(0.9), at(0.99), at(0.999)],
            last_at: inner.last_at,
        }
    }
}

/// `data.n` and `data.sent` of a numbered message, which stand in this order.
fn numbers(payload: &[u8]) -> Option<(u64, u64)> {
    let rest = &payload[after(payload, b"\"n\":")?..];
    Some((number(rest), number(&rest[after(rest, b"\"sent\":")?..])))
}

/// Where what follows `key` begins.
pub fn after(text: &[u8], key: &[u8]) -> Option<usize> {
    Some(text.windows(key.len()).position(|window| window == key)? + key.len())
}

/// The number at the beginning of `text`.
pub fn number(text: &[u8]) -> u64 {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}
