//! What the status page shows of this server besides its metrics.

use std::time::Duration;

use tokio::time::timeout;
use waypost_shared::operations::status::{Dependency, Expiry, Facts, State};

use crate::{
    config::{EmailTransport, sms::SmsTransport},
    storage::Store,
};

use super::App;

/// Time-out for the answer of the database.
const PATIENCE: Duration = Duration::from_secs(2);

impl App {
    /// The current state of its dependencies, and the age of what should be rotated.
    pub(crate) async fn facts(&self) -> Facts {
        match timeout(PATIENCE, self.store.answers()).await {
            Ok(Ok(())) => self.database.mark_up(),
            Ok(Err(error)) => self.database.mark_down(|| error.to_string()),
            Err(_) => self.database.mark_down(|| "no answer in time".to_owned()),
        }
        let database = match self.store {
            Store::Sqlite { .. } => self.database.dependency("SQLite", "database", "in the data folder"),
            Store::Postgres(_) => self.database.dependency("PostgreSQL", "database", "shared by replicas"),
        };
        let current = self.current_pepper().ok();
        let pepper =
            current.map(|pepper| Expiry { name: "pepper".to_owned(), at_ms: None, since_ms: Some(pepper.active_ms()) });
        Facts {
            dependencies: vec![database, self.mail(), self.text_messages(), self.homeservers_told()],
            expiries: pepper.into_iter().collect(),
        }
    }

    fn mail(&self) -> Dependency {
        let what = match self.config.email.transport {
            EmailTransport::Smtp => "SMTP",
            EmailTransport::Folder => "written to files, not sent",
        };
        self.mailer.probe.dependency("mail server", "mail", what)
    }

    fn text_messages(&self) -> Dependency {
        let what = match self.config.sms.transport {
            SmsTransport::Off => "not configured",
            SmsTransport::Http => "an HTTP gateway",
            SmsTransport::OpenMarket => "OpenMarket",
            SmsTransport::Log => "written to the log, not sent",
        };
        let known = self.sms.probe.dependency("text messages", "sms", what);
        if self.sms.is_on() { known } else { Dependency { state: State::Off, ..known } }
    }

    /// There are many homeservers, so only the calls pending for all of them are shown.
    fn homeservers_told(&self) -> Dependency {
        let (waiting, dead) = (self.metrics.outbox_waiting.get(), self.metrics.outbox_dead.get());
        Dependency {
            name: "homeservers".to_owned(),
            kind: "homeservers",
            state: if dead == 0 { State::Up } else { State::Down },
            detail: format!("{waiting} calls pending, {dead} given up"),
            since_ms: None,
        }
    }
}
