//! The refresh of one OAuth2 access token, and how its pair of tokens survives.
//!
//! A refresh token may be good for one use: the server replaces it with its answer. So the files' next
//! contents get their places (with space on the disk) before the server is asked; the answer is written and
//! forced to disk first, then the refresh token takes its file's place, then the access token. A crash
//!
//! - before the answer is written: the old refresh token is what there is. Where the server takes it again,
//!   nothing is lost. Where it does not, the access token serves until it ends, and somebody has to
//!   authorise the relay again. Nothing on this side can change that;
//! - after that: the pair is found beside the files at the next start, and put in its place;
//! - between the two files: the refresh token is the new one, and is used for the access token.
//!
//! An answer that cannot be stored is kept in memory and stored as soon as it can be, also where the channel
//! is configured in another way or removed meanwhile; nothing else is asked of the server until then.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{task::AbortHandle, time::timeout};
use tracing::{error, info};

use crate::{
    astro::rest::{
        Rest, RestError,
        oauth::{Granted, LIFETIME, RefreshGrant},
    },
    base::{
        clock::{self, Moment},
        files::{PATIENCE, shown},
        replace::{self, Replacement},
    },
    config::{Secret, SecretRef},
    gateway::{Account, RefreshSettings},
};

/// How long the server is left alone with what it has rejected.
const REJECTED: Duration = Duration::from_mins(5);

/// How often a refresh token that was replaced meanwhile is taken up at once.
const REREADS: usize = 2;

#[derive(Debug)]
pub(super) struct Refresher {
    settings: Arc<RefreshSettings>,
    token_file: Option<PathBuf>,
    refresh_file: Option<PathBuf>,
    recovered: bool,
    /// What the server gave and the disk did not take.
    unsaved: Option<Granted>,
    /// The refresh token that was rejected, when, and with which words.
    rejected: Option<(Secret, Moment, String)>,
    /// Work on files that has not come back.
    hanging: Option<AbortHandle>,
}

/// Why there is no new token.
#[derive(Debug)]
pub(super) enum Stopped {
    /// It will be the same until somebody does something.
    Rejected(String),
    /// It may work later, and not before that time.
    Later { why: String, asked: Option<Duration> },
}

impl Stopped {
    fn later(why: impl Into<String>) -> Self {
        Self::Later { why: why.into(), asked: None }
    }
}

impl Refresher {
    /// `None`: the token is not refreshed.
    pub(super) fn of(account: &Account) -> Option<Self> {
        let settings = Arc::clone(account.refresh.as_ref()?);
        Some(Self {
            token_file: file(&account.token),
            refresh_file: file(&settings.refresh_token),
            settings,
            recovered: false,
            unsaved: None,
            rejected: None,
            hanging: None,
        })
    }

    /// Whether there is something to store.
    pub(super) fn has_unsaved(&self) -> bool {
        self.unsaved.is_some()
    }

    /// Whether it stores in the same files.
    pub(super) fn has_files_of(&self, other: &Self) -> bool {
        (&self.token_file, &self.refresh_file) == (&other.token_file, &other.refresh_file)
    }

    /// Whether the refresh token is the one that was rejected, as far as it can be read.
    pub(super) async fn is_rejected(&self) -> bool {
        let Some((rejected, ..)) = &self.rejected else { return false };
        let token = self.settings.refresh_token.read_token().await.ok();
        token.is_none_or(|token| token == *rejected)
    }

    /// Goes on where an earlier one has been with the same files: a pair that is not stored is nowhere else.
    pub(super) fn succeed(&mut self, earlier: Self) {
        let Self { recovered, unsaved, hanging, .. } = earlier;
        (self.recovered, self.unsaved, self.hanging) = (recovered, unsaved, hanging);
    }

    /// Puts what a crash has left beside the files in its place, once.
    pub(super) async fn recover(&mut self, label: &Arc<str>) {
        if self.recovered {
            return;
        }
        for path in [self.refresh_file.clone(), self.token_file.clone()].into_iter().flatten() {
            let shown = shown(&path);
            match self.blocking(move || replace::recover(&path)).await {
                Ok(true) => {
                    info!(channel = %label, file = shown, "a refreshed token was recovered");
                }
                Ok(false) => {}
                Err(_) => return,
            }
        }
        self.recovered = true;
    }

    /// How long the token in the file can still be used, by when the file was changed.
    pub(super) async fn left_by_file(&mut self) -> Duration {
        let Some(path) = self.token_file.clone() else { return LIFETIME };
        let age = self.blocking(move || replace::age(&path, clock::now())).await;
        LIFETIME.saturating_sub(age.unwrap_or_default())
    }

    /// Gets a new pair and stores it.
    pub(super) async fn refresh(&mut self, rest: &Rest) -> Result<Granted, Stopped> {
        if !self.recovered {
            return Err(Stopped::later(
                "what a crash may have left beside its files is not read yet",
            ));
        }
        if let Some(granted) = self.unsaved.clone() {
            let places = self.prepare().await?;
            return self.store(places, granted).await;
        }
        let mut rereads = 0;
        loop {
            let grant = self.grant().await?;
            if let Some((token, at, why)) = &self.rejected
                && *token == grant.refresh_token
                && at.elapsed() < REJECTED
            {
                return Err(Stopped::Rejected(why.clone()));
            }
            self.rejected = None;
            let places = self.prepare().await?;
            let error = match rest.refresh(&grant).await {
                Ok(granted) => return self.store(places, granted).await,
                Err(error) => error,
            };
            places.discard();
            // Another relay, or somebody, may have used and replaced it while we did.
            let now = self.settings.refresh_token.read_token().await.ok();
            let is_other = now.is_some_and(|now| now != grant.refresh_token);
            if is_other && rereads < REREADS {
                rereads += 1;
                continue;
            }
            return Err(self.stopped(grant.refresh_token, &error));
        }
    }

    fn stopped(&mut self, token: Secret, error: &RestError) -> Stopped {
        let why = error.describe();
        match error {
            RestError::Refused { status, retry_after, .. }
                if matches!(status, 408 | 429) || *status >= 500 =>
            {
                Stopped::Later { why, asked: *retry_after }
            }
            RestError::Unreachable(_) | RestError::Unknown(_) | RestError::Unreadable(_) => {
                Stopped::later(why)
            }
            _ => {
                self.rejected = Some((token, Moment::now(), why.clone()));
                Stopped::Rejected(why)
            }
        }
    }

    /// What the server is asked with, as it is now.
    async fn grant(&self) -> Result<RefreshGrant, Stopped> {
        let RefreshSettings { client_id, client_secret, refresh_token } = &*self.settings;
        let unread = |error: crate::config::secret::SecretError| Stopped::later(error.to_string());
        Ok(RefreshGrant {
            client_id: client_id.clone(),
            client_secret: client_secret.read_token().await.map_err(unread)?,
            refresh_token: refresh_token.read_token().await.map_err(unread)?,
        })
    }

    /// Makes the places for the new pair.
    async fn prepare(&mut self) -> Result<Places, Stopped> {
        let (Some(token), Some(refresh)) = (self.token_file.clone(), self.refresh_file.clone())
        else {
            let why = "the refreshed tokens could not be stored: token_file and refresh_token_file \
                       are needed";
            return Err(Stopped::Rejected(why.into()));
        };
        let named = format!("{} and {}", shown(&token), shown(&refresh));
        let again = self.has_unsaved();
        let places = self.blocking(move || Places::prepare(&token, &refresh, again)).await;
        places.map_err(|why| {
            Stopped::later(format!("not asked for, for it could not be stored in {named}: {why}"))
        })
    }

    async fn store(&mut self, places: Places, granted: Granted) -> Result<Granted, Stopped> {
        self.unsaved = Some(granted.clone());
        let pair = granted.clone();
        match self.blocking(move || places.store(&pair)).await {
            Ok(()) => {
                self.unsaved = None;
                Ok(granted)
            }
            Err(why) => {
                error!(
                    error = why,
                    "a refreshed token cannot be stored: it is lost if the relay ends before it is"
                );
                Err(Stopped::later(format!("it was refreshed and cannot be stored: {why}")))
            }
        }
    }

    /// Does something with files, off the runtime and within their patience.
    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, String> {
        const SILENT: &str = "the file system does not answer";
        if self.hanging.as_ref().is_some_and(|hanging| !hanging.is_finished()) {
            return Err(SILENT.into());
        }
        let mut task = tokio::task::spawn_blocking(work);
        match timeout(PATIENCE, &mut task).await {
            Ok(Ok(outcome)) => outcome.map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => {
                self.hanging = Some(task.abort_handle());
                Err(SILENT.into())
            }
        }
    }
}

fn file(secret: &SecretRef) -> Option<PathBuf> {
    match secret {
        SecretRef::File(path) => Some(path.clone()),
        _ => None,
    }
}

/// Where a pair is going to be stored.
#[derive(Debug)]
struct Places {
    token: Replacement,
    refresh: Replacement,
}

impl Places {
    /// `again`: for a pair that could not be stored. What was written of it may be its only copy on disk.
    fn prepare(token: &Path, refresh: &Path, again: bool) -> io::Result<Self> {
        let prepare: fn(&Path) -> io::Result<Replacement> =
            if again { Replacement::prepare_again } else { Replacement::prepare };
        Ok(Self { token: prepare(token)?, refresh: prepare(refresh)? })
    }

    /// See the head of this file for the order.
    fn store(mut self, pair: &Granted) -> io::Result<()> {
        if let Some(refresh_token) = &pair.refresh_token {
            self.refresh.write(refresh_token.expose())?;
        }
        self.token.write(pair.access_token.expose())?;
        match pair.refresh_token {
            Some(_) => self.refresh.publish()?,
            None => self.refresh.discard(),
        }
        self.token.publish()
    }

    fn discard(self) {
        self.token.discard();
        self.refresh.discard();
    }
}
