//! Commands over MQTT, on a connection of its own.
//!
//! Each channel has `astro/<channel>/command/#`, and `astro/<channel>/response` for the replies. A client
//! of MQTT 5 may name another topic for the answer, and gets its correlation data back. The client id is
//! that of the sink with `-commands` behind it.
//!
//! Sessions are clean, so a broker queues nothing for us while we are away. What was read after the process
//! or the machine stood still may have come long ago: it is answered, and not executed.

use std::time::Duration;

use async_trait::async_trait;
use tokio::{
    select,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    CommandSubmitter, IncomingCommand, Replies, Reply, ReplyTo,
    attention::{Attention, TICK},
    listener::{CommandListener, Kind},
};
use crate::{
    base::backoff::Backoff,
    config::ConfigError,
    delivery::health::TaskHealth,
    sink::{
        Opening, command_address,
        mqtt::{
            connection::{Connection, ConnectionOptions, Event, Message, Publication, Unsent},
            lost::{Lost, Verdict, Why},
            settings::{Settings, client_id, command_client_id},
            topic,
        },
        settings,
    },
};

/// The row of this kind.
pub(super) const KIND: Kind = Kind { name: "mqtt", open };

/// The first wait after a lost connection is at most this.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// How long a broker is left alone that has denied us: a human has to change something.
const HOLD: Duration = Duration::from_mins(1);

/// A connection that has stood for so long has worked.
const PROVEN: Duration = Duration::from_secs(10);

/// At a stop, the last answers may take so long.
const DISCONNECT: Duration = Duration::from_secs(2);

/// The longest topic that is answered to.
const LONGEST_RESPONSE_TOPIC: usize = 256;

/// The longest correlation data that are repeated.
const LONGEST_CORRELATION: usize = 1024;

/// The broker has refused a subscription.
const NO_SUBSCRIPTION: &str = "the broker does not let us subscribe to commands";

struct MqttListener {
    settings: Settings,
    client_id: String,
    backoff: Backoff,
    connection: Option<Connection>,
}

fn open(opening: &Opening<'_>) -> Result<Box<dyn CommandListener>, ConfigError> {
    Ok(Box::new(MqttListener {
        settings: settings(opening)?,
        client_id: command_client_id(&client_id(opening.name, &opening.config.settings)),
        backoff: Backoff::new(FIRST_WAIT, opening.config.backoff_max.0),
        connection: None,
    }))
}

#[async_trait]
impl CommandListener for MqttListener {
    async fn run(
        &mut self,
        submitter: CommandSubmitter,
        mut replies: Replies,
        health: &TaskHealth,
        stop: &CancellationToken,
    ) {
        stop.run_until_cancelled(self.listen(&submitter, &mut replies, health)).await;
        if timeout(DISCONNECT, self.disconnect(&mut replies)).await.is_err() {
            warn!("the last answers to commands could not be sent in time");
        }
    }
}

impl MqttListener {
    /// Listens over one connection after another.
    async fn listen(
        &mut self,
        submitter: &CommandSubmitter,
        replies: &mut Replies,
        health: &TaskHealth,
    ) {
        loop {
            let begun = Instant::now();
            let Err(lost) = self.serve(submitter, replies, health).await;
            self.connection = None;
            if begun.elapsed() >= PROVEN {
                self.backoff.reset();
            }
            let wait = self.backoff.wait();
            let wait = if lost.why == Why::Denied { wait.max(HOLD) } else { wait };
            let error = lost.to_string();
            warn!(
                client_id = self.client_id,
                error,
                ?wait,
                "no commands are received at the moment"
            );
            health.report(Some(&error));
            sleep(wait).await;
        }
    }

    /// Connects, submits what comes and sends the replies, until the connection is lost.
    async fn serve(
        &mut self,
        submitter: &CommandSubmitter,
        replies: &mut Replies,
        health: &TaskHealth,
    ) -> Result<std::convert::Infallible, Lost> {
        let options = ConnectionOptions {
            settings: &self.settings,
            client_id: &self.client_id,
            will: None,
            receives: true,
        };
        let connection = self.connection.insert(Connection::open(&options).await?);
        let (qos, echoes) = (connection.qos(1), connection.terms().echoes);
        let filters = filters(submitter);
        if filters.is_empty() {
            // The protocol has no subscription to nothing.
            health.report(None);
        } else {
            connection.subscribe(filters, qos)?;
        }
        let (mut reader, mut refusals) = (Attention::new(), Refusals::default());
        loop {
            let room = connection.has_room();
            select! {
                biased;
                event = connection.next() => {
                    reader.attend();
                    match event? {
                        Event::Subscribed { refused } => {
                            if refused > 0 {
                                let error = NO_SUBSCRIPTION;
                                warn!(client_id = self.client_id, error, "some are not received");
                            }
                            refusals.subscription = refused > 0;
                            refusals.report(health);
                        }
                        Event::Answered(_, verdict) => {
                            refusals.answered(verdict, &self.client_id, health);
                        }
                        Event::Received(mut message) => {
                            // MQTT 3.1.1 does not show whether it clears what was retained.
                            message.retain |= echoes && message.payload.is_empty();
                            submit(submitter, &message, reader.is_late());
                        }
                        _ => {}
                    }
                }
                Some(answer) = replies.recv(), if room => send(connection, &answer, qos)?,
                () = sleep(TICK) => reader.attend(),
            }
        }
    }

    /// Sends the answers that there are, and disconnects.
    async fn disconnect(&mut self, replies: &mut Replies) {
        let Some(connection) = &mut self.connection else { return };
        let qos = connection.qos(1);
        loop {
            while connection.has_room()
                && let Ok(answer) = replies.try_recv()
            {
                if send(connection, &answer, qos).is_err() {
                    return;
                }
            }
            if connection.outstanding() == 0 {
                break;
            }
            if connection.next().await.is_err() {
                return;
            }
        }
        if connection.disconnect().is_ok() {
            while connection.next().await.is_ok_and(|event| event != Event::Disconnected) {}
        }
    }
}

/// What the broker refuses over a connection that stands.
#[derive(Default)]
struct Refusals {
    /// To subscribe to some of the commands.
    subscription: bool,
    /// The latest answer to a command, with the reason.
    answer: Option<String>,
}

impl Refusals {
    /// The broker has taken an answer to a command, or not.
    fn answered(&mut self, verdict: Verdict, client_id: &str, health: &TaskHealth) {
        let answer = match verdict {
            Verdict::Pending => return,
            Verdict::Accepted => None,
            Verdict::Busy(reason) | Verdict::Refused(reason) | Verdict::Denied(reason) => {
                Some(reason)
            }
        };
        if answer == self.answer {
            return;
        }
        if let Some(reason) = &answer {
            warn!(client_id, reason, "the broker refuses the answer to a command");
        }
        self.answer = answer;
        self.report(health);
    }

    fn report(&self, health: &TaskHealth) {
        let subscription = self.subscription.then(|| NO_SUBSCRIPTION.to_owned());
        let answer = self.answer.as_ref();
        let answer =
            answer.map(|reason| format!("the broker refuses the answers to commands: {reason}"));
        let reasons: Vec<String> = subscription.into_iter().chain(answer).collect();
        health.report((!reasons.is_empty()).then(|| reasons.join("; ")).as_deref());
    }
}

fn filters(submitter: &CommandSubmitter) -> Vec<String> {
    let filter = |label: &String| {
        format!("{}/{label}/{}/#", command_address::ROOT, command_address::COMMAND)
    };
    submitter.channels().iter().map(filter).collect()
}

fn submit(submitter: &CommandSubmitter, message: &Message, late: bool) {
    let Some((channel, path)) = command_address::parse(message.topic.as_bytes(), '/') else {
        return;
    };
    let address = match message.response_topic.as_deref().filter(|topic| is_answerable(topic)) {
        Some(topic) => topic.to_owned(),
        None => format!("{}/{channel}/response", command_address::ROOT),
    };
    let correlation =
        message.correlation.as_ref().filter(|data| data.len() <= LONGEST_CORRELATION).cloned();
    submitter.submit(IncomingCommand {
        channel,
        path: &path,
        payload: &message.payload,
        retained: message.retain,
        redelivered: message.duplicate,
        late,
        reply_to: Some(ReplyTo { address, correlation }),
    });
}

/// Whether an answer may go to a topic that a stranger has chosen: to no command, so that nobody lets
/// one relay command another, and to none of the broker's own.
fn is_answerable(topic: &str) -> bool {
    (1..=LONGEST_RESPONSE_TOPIC).contains(&topic.len())
        && !topic.starts_with('$')
        && !topic.contains(|c: char| matches!(c, '+' | '#') || topic::unfit(c))
        && !topic.split('/').any(|level| level == command_address::COMMAND)
}

fn send(connection: &mut Connection, answer: &Reply, qos: u8) -> Result<(), Lost> {
    let publication = Publication {
        topic: &answer.to.address,
        payload: answer.answer.json(),
        qos,
        content_type: Some("application/json"),
        correlation: answer.to.correlation.clone(),
        ..Publication::default()
    };
    match connection.publish(publication, 0) {
        Ok(()) => Ok(()),
        Err(Unsent::Refused(reason)) => {
            warn!(reason, "the answer to a command cannot be sent");
            Ok(())
        }
        Err(Unsent::Lost(lost)) => Err(lost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_go_to_no_command_and_to_no_topic_of_the_broker() {
        for (topic, fine) in [
            ("my/answers", true),
            ("homeassistant/x", true),
            ("", false),
            ("$SYS/x", false),
            ("a/+", false),
            ("a/#", false),
            ("a\0", false),
            ("astro/main/command/session/reset", false),
            ("home/light/command", false),
        ] {
            assert_eq!(is_answerable(topic), fine, "{topic}");
        }
        assert!(!is_answerable(&"x".repeat(LONGEST_RESPONSE_TOPIC + 1)));
    }
}
