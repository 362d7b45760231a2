//! The clocks, in one place, each for one purpose.
//!
//! | question | clock |
//! |---|---|
//! | what time is written down, for people and other programs? | [`now`], the wall clock: it may step, in both directions, by years |
//! | how long has something lasted (an age, a silence, a gap)? | [`Moment`]: it never steps, and goes on while the machine sleeps |
//! | how long ago was a time that a server wrote down? | `ServerClock`: what the server's clock showed, carried on by a [`Moment`] |
//! | when is a timer due? | tokio's, which tests can pause and which stands still while the machine sleeps |
//! | when is a wait over that is longer than a few seconds? | [`sleep`]: a machine that slept through it does not wait again |
//!
//! A difference of two wall-clock times is no duration: measure with [`Moment`].

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyper::header::{DATE, HeaderMap, RETRY_AFTER};
use rustix::time::{ClockId, clock_gettime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::watch;
use tracing::info;

/// Milliseconds since the Unix epoch, UTC.
pub type UnixMillis = u64;

/// Now. A clock before 1970 reads as 0.
pub fn now() -> UnixMillis {
    millis_of(since_epoch())
}

/// Now in microseconds, for latencies measured between two processes of one machine.
pub fn now_micros() -> u64 {
    u64::try_from(since_epoch().as_micros()).unwrap_or(u64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

/// A shorter difference between the clocks is no sleep of the machine.
const SHORTEST_SLEEP: Duration = Duration::from_millis(500);

/// A moment of this process, for measuring how long something lasts. Differences are not changed by a
/// step of the wall clock, and include the time that the machine was suspended.
///
/// It is tokio's clock (so a paused test can advance it) and the time that the machine has slept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    awake: tokio::time::Instant,
    asleep: Duration,
}

impl Moment {
    pub fn now() -> Self {
        Self { awake: tokio::time::Instant::now(), asleep: asleep() }
    }

    /// The moment so long before this one, as far back as moments go.
    #[must_use]
    pub fn before(self, time: Duration) -> Self {
        Self { awake: self.awake.checked_sub(time).unwrap_or(self.awake), asleep: self.asleep }
    }

    /// How long ago it was; zero for a moment that is still to come.
    pub fn elapsed(self) -> Duration {
        Self::now().since(self)
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        // The two clocks behind `asleep` are read one after the other; a shorter difference is that.
        let slept = self.asleep.saturating_sub(earlier.asleep);
        let slept = if slept < SHORTEST_SLEEP { Duration::ZERO } else { slept };
        self.awake.saturating_duration_since(earlier.awake) + slept
    }
}

/// How long the machine has been suspended since it booted.
fn asleep() -> Duration {
    read(ClockId::Boottime).saturating_sub(read(ClockId::Monotonic))
}

/// A clock of the system that begins at zero.
pub(super) fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).try_into().unwrap_or_default()
}

/// The wall clock's time so long ago, by the clock as it goes now.
pub fn ago(time: Duration) -> UnixMillis {
    now().saturating_sub(millis_of(time))
}

/// How long the machine had slept when that was last noticed.
static SLEPT: LazyLock<watch::Sender<Duration>> = LazyLock::new(|| watch::Sender::new(asleep()));

/// Looks whether the machine has slept, and wakes those who wait for that. The supervisor calls it
/// every second.
pub(crate) fn notice_sleep() {
    let slept = asleep();
    SLEPT.send_if_modified(|known| {
        let more = slept.saturating_sub(*known);
        if more < SHORTEST_SLEEP {
            return false;
        }
        info!(slept = ?more, "the machine was suspended");
        *known = slept;
        true
    });
}

/// Changes when the machine was found to have slept.
pub fn sleeps() -> watch::Receiver<Duration> {
    SLEPT.subscribe()
}

/// Waits. Unlike tokio's, it is over also when the machine has slept through it.
pub async fn sleep(wait: Duration) {
    let began = Moment::now();
    let mut sleeps = sleeps();
    loop {
        let left = wait.saturating_sub(began.elapsed());
        tokio::select! {
            () = tokio::time::sleep(left) => return,
            Ok(()) = sleeps.changed() => {}
        }
    }
}

/// Waits until then; without a time for ever.
pub(crate) async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// In whole milliseconds.
pub(crate) fn millis_of(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How long ago the machine was booted, the time that it was suspended among it. Together with
/// [`boot_id`] it joins what one process measures to what another has measured.
pub(crate) fn since_boot() -> Duration {
    read(ClockId::Boottime)
}

/// Which boot of the machine this is; empty where the system does not say.
pub(crate) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.unwrap_or_default().trim().to_owned()
}

/// As RFC 3339 in UTC with milliseconds: `2026-11-22T04:13:00.120Z`.
pub fn rfc3339(millis: UnixMillis) -> String {
    let time = i128::from(millis) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(time)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// Reads RFC 3339; `None` for anything else, and for times before 1970.
pub fn parse_rfc3339(text: &str) -> Option<UnixMillis> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    UnixMillis::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

/// A time before 1970 reads as 0.
pub fn millis(time: OffsetDateTime) -> UnixMillis {
    UnixMillis::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

/// The wall clock of a server: what it showed, and when that was. From there on time is measured as a [`Moment`]
/// does, so a step of our wall clock changes nothing about it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServerClock {
    showed: UnixMillis,
    at: Moment,
}

impl ServerClock {
    /// It shows this now.
    pub(crate) fn shows(time: UnixMillis) -> Self {
        Self { showed: time, at: Moment::now() }
    }

    /// Our own, where the server's is not known.
    pub(crate) fn ours() -> Self {
        Self::shows(now())
    }

    /// What it shows now.
    pub(crate) fn now(self) -> UnixMillis {
        self.showed.saturating_add(millis_of(self.at.elapsed()))
    }

    /// What it showed so long ago.
    pub(crate) fn ago(self, time: Duration) -> UnixMillis {
        self.now().saturating_sub(millis_of(time))
    }

    /// How long ago it showed this; zero for a time that is still to come.
    pub(crate) fn since(self, time: UnixMillis) -> Duration {
        Duration::from_millis(self.now().saturating_sub(time))
    }

    /// How many milliseconds it is ahead of our wall clock now (negative: behind).
    pub(crate) fn ahead(self) -> i64 {
        let signed = |time: UnixMillis| i64::try_from(time).unwrap_or(i64::MAX);
        signed(self.now()).saturating_sub(signed(now()))
    }
}

/// Reads a time as people write one: RFC 3339, or an age such as `2h`.
pub fn moment(text: &str, now: UnixMillis) -> Option<UnixMillis> {
    parse_rfc3339(text).or_else(|| {
        let age = humantime::parse_duration(text).ok()?;
        Some(now.saturating_sub(millis_of(age)))
    })
}

/// The longest wait that somebody else may ask for: whoever asks for more means "not today".
const LONGEST_ASKED: Duration = Duration::from_hours(24);

/// The wait that an answer asks for with `Retry-After`: seconds, or a date, of which the past means now
/// (RFC 9110, section 10.2.3). Fractions are taken too, and of several values the first that can be read.
/// A date is compared with the server's own, where it says: one of the two clocks may be wrong. `None`
/// where it asks for no wait.
pub fn retry_after(headers: &HeaderMap, now: UnixMillis) -> Option<Duration> {
    let wait = headers.get_all(RETRY_AFTER).iter().find_map(|value| {
        let text = value.to_str().ok()?.trim();
        let Some(until) = date(text) else { return text.split(',').find_map(seconds) };
        let server_date = headers.get(DATE).and_then(|value| date(value.to_str().ok()?.trim()));
        let now = server_date.unwrap_or(UNIX_EPOCH + Duration::from_millis(now));
        Some(until.duration_since(now).unwrap_or(Duration::ZERO))
    });
    wait.map(|wait| wait.min(LONGEST_ASKED))
}

/// A date of any form that HTTP has had, or of RFC 3339.
fn date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text)
        .ok()
        .or_else(|| Some(UNIX_EPOCH + Duration::from_millis(parse_rfc3339(text)?)))
}

fn seconds(text: &str) -> Option<Duration> {
    let text = text.trim();
    // No sign, no exponent, no "inf".
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds: f64 = text.parse().ok().filter(|_| plain)?;
    Some(Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_ASKED))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_moment_follows_the_clock_of_the_timers() {
        let before = Moment::now();
        tokio::time::sleep(Duration::from_secs(90)).await;
        assert_eq!(before.elapsed(), Duration::from_secs(90));
        assert_eq!(before.since(Moment::now()), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_lasts_as_long_as_it_is_to() {
        let before = Moment::now();
        sleep(Duration::from_hours(3)).await;
        assert_eq!(before.elapsed(), Duration::from_hours(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_servers_clock_goes_on_whatever_our_wall_clock_shows() {
        let day = millis_of(Duration::from_hours(24));
        // Ours is a day ahead of the server's, as after a step.
        let stored = now() - day;
        let server = ServerClock::shows(stored);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(server.since(stored), Duration::from_secs(3));
        assert_eq!(server.ago(Duration::from_secs(3)), stored);
        assert_eq!(server.since(stored + day), Duration::ZERO);
        let off = server.ahead() + i64::try_from(day).unwrap();
        assert!((0..=3_000).contains(&off), "{off}");
    }

    #[test]
    fn times_are_read_and_written() {
        for (text, millis) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2024-02-15T14:52:42Z", 1_708_008_762_000),
            ("2024-02-15T16:52:42.5+02:00", 1_708_008_762_500),
        ] {
            assert_eq!(parse_rfc3339(text), Some(millis), "{text}");
            assert_eq!(parse_rfc3339(&rfc3339(millis)), Some(millis), "{text}");
        }
        for text in ["", "yesterday", "2024-02-15", "1969-12-31T23:59:59Z"] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn retry_after_is_read_in_every_form() {
        let now = 1_708_008_762_000;
        let day = 24.0 * 3600.0;
        for (text, seconds) in [
            ("2", Some(2.0)),
            (" 17 ", Some(17.0)),
            ("0", Some(0.0)),
            ("1.5", Some(1.5)),
            ("120, 120", Some(120.0)),
            ("soon, 5", Some(5.0)),
            ("2024-02-15T14:53:42Z", Some(60.0)),
            ("Thu, 15 Feb 2024 14:53:42 GMT", Some(60.0)),
            ("Thursday, 15-Feb-24 14:53:42 GMT", Some(60.0)),
            ("Thu Feb 15 14:53:42 2024", Some(60.0)),
            ("Thu, 15 Feb 2024 14:51:42 GMT", Some(0.0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(day)),
            ("99999999999999999999999999", Some(day)),
            (&"9".repeat(400), Some(day)),
            ("1e3", None),
            (".", None),
            ("soon", None),
            ("-1", None),
            ("", None),
            ("2 seconds", None),
            ("NaN", None),
            ("inf", None),
        ] {
            let expected = seconds.map(Duration::from_secs_f64);
            let headers =
                HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(text).unwrap())]);
            assert_eq!(retry_after(&headers, now), expected, "{text:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn a_date_is_compared_with_the_servers_own_and_the_first_legible_value_counts() {
        let header = |name, text| (name, HeaderValue::from_static(text));
        let far = [
            header(RETRY_AFTER, "Wed, 15 Nov 2023 08:00:30 GMT"),
            header(DATE, "Wed, 15 Nov 2023 08:00:00 GMT"),
        ];
        let now = 1_700_000_000_000;
        let wait = retry_after(&HeaderMap::from_iter(far), now);
        assert_eq!(wait, Some(Duration::from_secs(30)));
        let mut two = HeaderMap::new();
        two.append(RETRY_AFTER, HeaderValue::from_static("later"));
        two.append(RETRY_AFTER, HeaderValue::from_static("7"));
        assert_eq!(retry_after(&two, now), Some(Duration::from_secs(7)));
    }
}
