//! The histories: what the REST API still lists of activities, tips and redemptions of the store.
//!
//! Each is asked for in its own way, and read whole by a [`HistoryReader`]: the items of a span of time,
//! oldest first. What the vendor's documents say of them:
//!
//! | history | path | by time | order |
//! |---|---|---|---|
//! | activities | `/activities/:channel` | `after`, `before` | newest first |
//! | tips | `/tips/:channel` | `after`, `before` | as asked (`sort`) |
//! | redemptions | `/store/:channel/redemptions` | no | not documented; newest first with those who have looked |

use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{Credentials, Rest, RestError, is_channel_id};
use crate::base::{
    clock::{self, UnixMillis},
    json, text,
};

/// The most items of one page (vendor's `OpenAPI`: limit 1 to 100).
pub const PAGE: usize = 100;

/// Pages that are read of one history, at most: ten thousand items are a gap of days.
const PAGES: usize = 100;

/// How a page of activities is asked for: the types that are named. The vendor's `OpenAPI` marks all parameters as
/// required, with a short list of types; most public clients send a few, and get all types. One reports that types
/// that are not listed are left out. So what brings nothing is asked for in the next form too. A server may refuse
/// types that it does not know.
const FORMS: [&[&[&str]]; 4] = [&[], &[DOCUMENTED, ANNOUNCED], &[DOCUMENTED], &[LISTED]];

/// Those of KICKs and Jewels, which the documents announce without naming them.
const ANNOUNCED: &[&str] = &["kicks", "jewels"];

/// The types of `channel.activities` in the documents of September 2026.
const DOCUMENTED: &[&str] = &[
    "event", "follow", "tip", "communityGiftPurchase", "channelPointsRedemption", "sponsor",
    "superchat", "host", "raid", "subscriber", "cheer", "cheerPurchase", "charityCampaignDonation",
    "redemption", "merch", "fan", "supporter", "follower", "stars", "share", "videolike", "elixir",
    "purchase", "hypetrainStart", "hypetrainProgress", "hypetrainEnd", "giveaway", "sponsorship",
    "sponsorshipPassive",
];

/// Those of the `OpenAPI`.
const LISTED: &[&str] = &[
    "follow", "tip", "sponsor", "superchat", "host", "raid", "subscriber", "cheer", "redemption",
    "merch",
];

/// Which history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum History {
    Activities,
    Tips,
    Redemptions,
}

impl History {
    /// That of a topic; `None`: there is none.
    pub fn of(topic: &str) -> Option<Self> {
        match topic {
            "channel.activities" => Some(Self::Activities),
            "channel.tips" => Some(Self::Tips),
            "channel.loyalty.redemptions" => Some(Self::Redemptions),
            _ => None,
        }
    }

    /// What its items are, as ids that the relay makes of them begin.
    pub fn word(self) -> &'static str {
        match self {
            Self::Activities => "activity",
            Self::Tips => "tip",
            Self::Redemptions => "redemption",
        }
    }
}

/// One item of a history.
#[derive(Debug, Clone)]
pub struct HistoryItem {
    /// `_id`: the same as in the live message.
    pub id: String,
    /// `type`: `tip`, `follow`, …; empty but for activities.
    pub kind: String,
    /// `createdAt`.
    pub at: UnixMillis,
    /// The whole item, as it came.
    pub item: Box<RawValue>,
}

/// Which activities.
#[derive(Debug, Clone, Default)]
pub struct Span<'a> {
    /// Not older than this.
    pub after: Option<UnixMillis>,
    /// Not newer than this.
    pub before: Option<UnixMillis>,
    /// Only of these types; none: of all.
    pub types: &'a [String],
}

/// A page of a history.
#[derive(Debug, Clone, Default)]
pub struct Page {
    pub items: Vec<HistoryItem>,
    /// Whether there may be more behind it.
    pub full: bool,
    /// It has only types that the relay names, though all were asked for.
    pub only_named_types: bool,
}

/// A history of a span of time.
#[derive(Debug, Clone, Default)]
pub struct Listed {
    /// Oldest first.
    pub items: Vec<HistoryItem>,
    /// Whether these are all of the span, of their types.
    pub complete: bool,
    /// They are only of types that the relay names, though all were asked for.
    pub only_named_types: bool,
}

/// Which of [`FORMS`] has brought something.
#[derive(Debug, Default)]
pub(super) struct WorkingForm(AtomicUsize);

impl WorkingForm {
    /// The form to begin with, and whether it is known to work.
    fn get(&self) -> (usize, bool) {
        match self.0.load(Ordering::Relaxed) {
            0 => (0, false),
            known => (known - 1, true),
        }
    }

    fn set(&self, form: usize) {
        self.0.store(form + 1, Ordering::Relaxed);
    }
}

impl Rest {
    /// One page of the activities, newest first: at most [`PAGE`] of them. An item without an id or a
    /// time cannot be distinguished from others, and is left out.
    pub async fn activities(
        &self,
        credentials: &Credentials,
        span: &Span<'_>,
    ) -> Result<Page, RestError> {
        if !span.types.is_empty() {
            let types: Vec<&str> = span.types.iter().map(String::as_str).collect();
            return self.activities_page(credentials, span, &types).await;
        }
        let (mut form, mut is_known) = self.form.get();
        let mut outcome: Option<Result<Page, RestError>> = None;
        while let Some(lists) = FORMS.get(form) {
            let types: Vec<&str> = lists.concat();
            let page = self.activities_page(credentials, span, &types).await;
            match page.map(|page| Page { only_named_types: !types.is_empty(), ..page }) {
                Ok(page) if !page.items.is_empty() => {
                    self.form.set(form);
                    return Ok(page);
                }
                // The first of several that bring nothing names the fewest types.
                Ok(page) => outcome = outcome.filter(Result::is_ok).or(Some(Ok(page))),
                Err(error @ RestError::Refused { status: 400, .. }) => {
                    // A form that no longer works says nothing about the others.
                    is_known = false;
                    outcome.get_or_insert(Err(error));
                }
                Err(error) => return Err(error),
            }
            if is_known {
                break;
            }
            form += 1;
        }
        outcome.unwrap_or_else(|| Ok(Page::default()))
    }

    async fn activities_page(
        &self,
        credentials: &Credentials,
        span: &Span<'_>,
        types: &[&str],
    ) -> Result<Page, RestError> {
        let mut query = vec![("limit", PAGE.to_string())];
        query.extend(span.after.map(|after| ("after", after.to_string())));
        query.extend(span.before.map(|before| ("before", before.to_string())));
        if !types.is_empty() {
            query.extend(types.iter().map(|kind| ("types", (*kind).to_owned())));
            if span.types.is_empty() {
                let least = ["mincheer", "minhost", "minsub", "mintip"];
                query.extend(least.map(|name| (name, "0".to_owned())));
                query.push(("origin", "astro-relay".to_owned()));
            }
        }
        self.page(credentials, "activities", "", &query).await
    }

    /// A page of tips, oldest first, behind the first `offset` of the span.
    async fn tips_page(
        &self,
        credentials: &Credentials,
        (after, before): (UnixMillis, Option<UnixMillis>),
        offset: usize,
    ) -> Result<Page, RestError> {
        let mut query = vec![
            ("limit", PAGE.to_string()),
            ("offset", offset.to_string()),
            ("sort", "createdAt".to_owned()),
            ("after", after.to_string()),
        ];
        query.extend(before.map(|before| ("before", before.to_string())));
        self.page(credentials, "tips", "", &query).await
    }

    async fn redemptions_page(
        &self,
        credentials: &Credentials,
        offset: usize,
    ) -> Result<Page, RestError> {
        let query = [("limit", PAGE.to_string()), ("offset", offset.to_string())];
        self.page(credentials, "store", "/redemptions", &query).await
    }

    /// A list, bare or under `docs`.
    async fn page(
        &self,
        credentials: &Credentials,
        area: &str,
        tail: &str,
        query: &[(&str, String)],
    ) -> Result<Page, RestError> {
        #[derive(Deserialize)]
        struct Docs {
            docs: Vec<Box<RawValue>>,
        }
        let body: Box<RawValue> = self.get(credentials, area, tail, query).await?;
        let body = body.get();
        let items = if body.trim_start().starts_with('[') {
            json::read(body.as_bytes())
        } else {
            json::read(body.as_bytes()).map(|Docs { docs }| docs)
        };
        let items = items.map_err(|error| RestError::Unreadable(error.into()))?;
        let full = items.len() >= PAGE;
        let items = items.into_iter().filter_map(read_item).collect();
        Ok(Page { items, full, only_named_types: false })
    }
}

/// Reads what a history has of a span of time, page by page. Where a page cannot be had, the next attempt
/// continues there.
#[derive(Debug)]
pub struct HistoryReader {
    history: History,
    after: UnixMillis,
    before: Option<UnixMillis>,
    pages: Pages,
}

impl HistoryReader {
    pub fn new(history: History, after: UnixMillis, before: Option<UnixMillis>) -> Self {
        let newest_first = history != History::Tips;
        let pages = Pages { before, newest_first, ..Pages::default() };
        Self { history, after, before, pages }
    }

    /// Pages that were read so far.
    pub fn pages(&self) -> usize {
        self.pages.read
    }

    /// Items that were read so far.
    pub fn items(&self) -> usize {
        self.pages.listed.items.len()
    }

    /// Reads the pages that were not read yet. Items that are not in the span may be asked for on the way;
    /// they are left out.
    pub async fn read(
        &mut self,
        rest: &Rest,
        credentials: &Credentials,
    ) -> Result<Listed, RestError> {
        let (after, before) = (self.after, self.before);
        while let Some(offset) = self.pages.next() {
            match self.history {
                History::Activities => {
                    let span = Span { after: Some(after), before: self.pages.before, types: &[] };
                    let page = rest.activities(credentials, &span).await?;
                    self.pages.add_before(page, after);
                }
                History::Tips => {
                    self.pages.add(rest.tips_page(credentials, (after, before), offset).await?);
                }
                History::Redemptions => {
                    self.pages.add(rest.redemptions_page(credentials, offset).await?);
                    self.pages.stop_before(after);
                }
            }
        }
        let mut listed = std::mem::take(&mut self.pages.listed);
        // Also within one millisecond.
        if self.pages.newest_first {
            listed.items.reverse();
        }
        let in_span = |at| at >= after && before.is_none_or(|before| at <= before);
        listed.items.retain(|item| in_span(item.at));
        listed.items.sort_by_key(|item| item.at);
        Ok(listed)
    }
}

/// Pages that are counted by an offset, or of which each ends where the next begins.
#[derive(Debug, Default)]
struct Pages {
    listed: Listed,
    seen: HashSet<String>,
    read: usize,
    /// Items so far, with those that cannot be read.
    offset: usize,
    /// Where pages are not counted by that: the end of the next one.
    before: Option<UnixMillis>,
    /// Whether each item so far was older than the one before.
    newest_first: bool,
    /// The time of the last item.
    oldest: Option<UnixMillis>,
    over: bool,
}

impl Pages {
    /// Where the next page begins; `None`: there is no next one, or there were too many.
    fn next(&self) -> Option<usize> {
        (!self.over && self.read < PAGES).then_some(self.offset)
    }

    fn add(&mut self, page: Page) {
        self.read += 1;
        self.offset += PAGE;
        self.over = !page.full;
        self.listed.complete = self.over;
        self.listed.only_named_types |= page.only_named_types;
        for item in page.items {
            // What moved to this page meanwhile says nothing of the order.
            if self.seen.insert(item.id.clone()) {
                self.newest_first &= self.oldest.is_none_or(|oldest| item.at <= oldest);
                self.oldest = Some(item.at);
                self.listed.items.push(item);
            }
        }
    }

    /// The same, where a page is asked for by the time of the one before it.
    fn add_before(&mut self, page: Page, after: UnixMillis) {
        let oldest = page.items.last().map(|item| item.at);
        let known = self.listed.items.len();
        self.add(page);
        let Some(oldest) = oldest.filter(|oldest| *oldest >= after) else {
            (self.over, self.listed.complete) = (true, true);
            return;
        };
        // Whether a bound belongs to the span no document says: one millisecond more does no harm, unless
        // a whole page lies in it.
        let is_news = self.listed.items.len() > known;
        self.before = Some(if is_news { oldest + 1 } else { oldest.saturating_sub(1) });
    }

    /// Where the newest come first, what comes next is older still.
    fn stop_before(&mut self, after: UnixMillis) {
        if self.newest_first && self.oldest.is_some_and(|oldest| oldest < after) {
            (self.over, self.listed.complete) = (true, true);
        }
    }
}

fn read_item(item: Box<RawValue>) -> Option<HistoryItem> {
    let known = json::value(item.get().as_bytes())?;
    let text = |name: &str| match known.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let found = text("_id").or_else(|| text("activityId")).and_then(|id| {
        let at = text("createdAt").and_then(|at| clock::parse_rfc3339(&at).or(at.parse().ok()));
        Some((at.or_else(|| made_at(&id))?, id))
    });
    let Some((at, id)) = found else {
        let excerpt = text::excerpt(item.get(), text::EXCERPT);
        tracing::warn!(
            item = excerpt,
            "an item of the history has no id or no time, and is left out"
        );
        return None;
    };
    Some(HistoryItem { id, kind: text("type").unwrap_or_default(), at, item })
}

/// When an id of the vendor's was made: its first eight digits are seconds.
fn made_at(id: &str) -> Option<UnixMillis> {
    let seconds = is_channel_id(id).then(|| id.get(..8)).flatten()?;
    u64::from_str_radix(seconds, 16).ok().map(|seconds| 1000 * seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_is_read() {
        let items = include_str!("../../../tests/fixtures/rest/activities.json");
        let items: Vec<Box<RawValue>> = serde_json::from_str(items).unwrap();
        let read: Vec<_> = items.into_iter().filter_map(read_item).collect();
        assert_eq!(read.len(), 12);
        assert_eq!((&*read[0].kind, &*read[0].id), ("merch", "5c09463bde9a4cebcca14be8"));
        assert!(read.is_sorted_by(|a, b| a.at >= b.at));
    }

    fn page(times: impl IntoIterator<Item = UnixMillis>, full: bool) -> Page {
        let item = |at: UnixMillis| {
            let item = RawValue::from_string("{}".to_owned()).unwrap();
            HistoryItem { id: at.to_string(), kind: String::new(), at, item }
        };
        Page { items: times.into_iter().map(item).collect(), full, ..Page::default() }
    }

    #[test]
    fn pages_end_at_the_span_only_where_the_newest_come_first() {
        let mut pages = Pages { newest_first: true, ..Pages::default() };
        pages.add(page((300..400).rev(), true));
        pages.stop_before(250);
        assert_eq!((pages.next(), pages.listed.complete), (Some(PAGE), false));
        pages.add(page((200..300).rev(), true));
        pages.stop_before(250);
        assert_eq!((pages.next(), pages.listed.complete), (None, true));
        // In any other order all of them are to be read.
        let mut pages = Pages { newest_first: true, ..Pages::default() };
        pages.add(page(200..300, true));
        pages.stop_before(250);
        assert_eq!((pages.next(), pages.listed.complete), (Some(PAGE), false));
        pages.add(page([400], false));
        assert_eq!((pages.next(), pages.listed.complete), (None, true));
        // What moved to the next page meanwhile is there once.
        let mut pages = Pages::default();
        for _ in 0..PAGES {
            pages.add(page([1, 2, 3], true));
        }
        assert_eq!((pages.next(), pages.listed.complete), (None, false));
        assert_eq!(pages.listed.items.len(), 3);
    }
}
