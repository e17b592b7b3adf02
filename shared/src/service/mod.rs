//! The life cycle of both programs: listeners, readiness, reload, background jobs and the shutdown sequence.
//!
//! A service is ready from [`Service::run`] until it is asked to stop. It then becomes unready first, so that no new
//! requests are routed to it; requests in flight and jobs finish; the last spans are exported; health and metrics are
//! served until all of that is done.

pub mod command_line;
mod limits;
pub mod reload;
pub mod systemd;

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{Id, JoinError, JoinSet},
    time::timeout,
};

use crate::{
    clock::Clock,
    current::Current,
    error::Chain,
    http::{
        Router,
        server::{self, ServerConfig},
    },
    operations::{
        self, Operations, Readiness,
        status::{About, Facts},
    },
    service::reload::{Reasons, Renewed},
    stop::{self, Stop},
    telemetry::{
        metrics::{HttpMetrics, ReloadMetrics},
        otlp::Exporter,
    },
};

/// A running service.
#[derive(Debug)]
pub struct Service {
    server: ServerConfig,
    exporter: Option<Exporter>,
    readiness: Readiness,
    stop: Stop,
    ask_to_stop: watch::Sender<bool>,
    /// Listeners and background jobs, none of which may end before shutdown.
    tasks: JoinSet<io::Result<()>>,
    names: HashMap<Id, &'static str>,
    operations: JoinSet<io::Result<()>>,
    stop_operations: watch::Sender<bool>,
}

/// Why a service stopped without being told to.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A task that should run for as long as the service ended. Continuing without it would be worse: a replica whose
    /// change feed has died answers lookups from stale data.
    #[error("`{0}` ended before the service was asked to stop")]
    Ended(&'static str),
    /// Likewise, with an error.
    #[error("`{0}` failed")]
    Failed(&'static str, #[source] io::Error),
    /// Likewise, with a panic, whose message is in the log.
    #[error("`{0}` panicked")]
    Panicked(&'static str),
}

impl Service {
    /// Starts serving health, metrics and the status page on `operations`, not ready yet. SIGTERM and SIGINT stop the
    /// service.
    ///
    /// # Errors
    ///
    /// If signal handlers cannot be installed or the thread cannot be started.
    pub fn start<F, Fut>(
        name: &'static str,
        server: &ServerConfig,
        operations: TcpListener,
        registry: Registry,
        exporter: Option<Exporter>,
        facts: F,
    ) -> io::Result<Self>
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Facts> + Send + 'static,
    {
        let server = &limits::prepare(server);
        let (ask_to_stop, stop) = Stop::manual();
        stop::stop_on_signals(ask_to_stop.clone())?;
        let readiness = Readiness::default();
        let about = About::new(name, Clock::System, facts);
        let shown = Operations { registry: Arc::new(registry), readiness: readiness.clone(), about };
        let (stop_operations, until_stopped) = Stop::manual();
        let serving =
            server::serve_apart("operations", operations, operations::routes(), shown, server, until_stopped)?;
        let mut operations = JoinSet::new();
        operations.spawn(serving);
        Ok(Self {
            server: server.clone(),
            exporter,
            readiness,
            stop,
            ask_to_stop,
            tasks: JoinSet::new(),
            names: HashMap::new(),
            operations,
            stop_operations,
        })
    }

    /// The shutdown signal, for jobs.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Runs `job` in the background. It must end once shutdown starts, and not before.
    pub fn job(&mut self, name: &'static str, job: impl Future<Output = ()> + Send + 'static) {
        self.task(name, async {
            job.await;
            Ok(())
        });
    }

    /// Serves `router` on `listener` until shutdown. `metrics` counts its requests.
    pub fn listen<S: Clone + Send + Sync + 'static>(
        &mut self,
        name: &'static str,
        listener: TcpListener,
        router: Router<S>,
        state: &Current<S>,
        metrics: Option<HttpMetrics>,
    ) {
        let tracer = self.exporter.as_ref().map(Exporter::tracer);
        let (state, server, stop) = (state.clone(), self.server.clone(), self.stop());
        self.task(name, async move { server::serve(listener, router, state, &server, metrics, tracer, stop).await });
    }

    /// Reloads the configuration whenever there is a reason to, until shutdown; see [`reload::keep_up`].
    pub fn reload<S: Clone + Send + Sync + 'static>(
        &mut self,
        current: &Current<S>,
        reasons: Reasons,
        metrics: ReloadMetrics,
        read_again: impl Fn(&S, Option<&Exporter>) -> Result<Renewed<S>, Box<dyn std::error::Error + Send + Sync>>
        + Send
        + 'static,
    ) {
        let (current, stop, exporter) = (current.clone(), self.stop(), self.exporter.clone());
        self.job("reload", async move {
            reload::keep_up(current, reasons, metrics, stop, move |state| read_again(state, exporter.as_ref())).await;
        });
    }

    fn task(&mut self, name: &'static str, task: impl Future<Output = io::Result<()>> + Send + 'static) {
        let id = self.tasks.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Waits for `work`, which has to be done before the service is ready. `None` if it is told to stop first: nothing is
    /// served yet, so there is nothing to finish.
    pub async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.stop.requested() => None,
        }
    }

    /// Marks the service ready, and runs until a signal arrives or until a listener or job ends.
    ///
    /// # Errors
    ///
    /// [`ServiceError`], if a task ended by itself.
    pub async fn run(mut self) -> Result<(), ServiceError> {
        self.readiness.set(true);
        systemd::ready();
        let ended = tokio::select! {
            () = self.stop.requested() => Ok(()),
            // The end of a task that the stop ended may be noticed before the stop itself.
            Some(ended) = self.tasks.join_next_with_id() => match ended {
                Ok((_, Ok(()))) if self.stop.is_requested() => Ok(()),
                ended => Err(self.failure(ended)),
            },
            Some(ended) = self.operations.join_next() => Err(operations_failure(ended)),
        };
        if let Err(error) = &ended {
            tracing::error!(error = %Chain(error), "a service task ended unexpectedly; shutting down so that it is restarted");
        }
        let stopped = self.shut_down().await;
        ended.and(stopped)
    }

    /// Stops everything, in order.
    ///
    /// # Errors
    ///
    /// The first failure of a task while it was stopping.
    async fn shut_down(&mut self) -> Result<(), ServiceError> {
        let mut first = None;
        self.readiness.set(false);
        systemd::stopping();
        self.ask_to_stop.send_replace(true);
        // Listeners give their requests the grace period; anything slower hangs.
        let grace = Duration::from_secs(self.server.shutdown_grace_secs).saturating_add(SPARE);
        let ending = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                if !matches!(ended, Ok((_, Ok(())))) {
                    let error = self.failure(ended);
                    tracing::error!(error = %Chain(&error), "a service task failed during shutdown");
                    first.get_or_insert(error);
                }
            }
        };
        if timeout(grace, ending).await.is_err() {
            tracing::warn!("service tasks did not end in time; aborting them");
            self.tasks.shutdown().await;
        }
        if let Some(exporter) = &self.exporter {
            exporter.stop().await;
        }
        self.stop_operations.send_replace(true);
        while let Some(ended) = self.operations.join_next().await {
            if !matches!(ended, Ok(Ok(()))) {
                let error = operations_failure(ended);
                tracing::error!(error = %Chain(&error), "the operations listener failed during shutdown");
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn failure(&self, ended: Result<(Id, io::Result<()>), JoinError>) -> ServiceError {
        let name = |id: Id| self.names.get(&id).copied().unwrap_or("task");
        match ended {
            Ok((id, Ok(()))) => ServiceError::Ended(name(id)),
            Ok((id, Err(error))) => ServiceError::Failed(name(id), error),
            Err(error) => ServiceError::Panicked(name(error.id())),
        }
    }
}

/// Time that jobs have to end after the grace period of requests.
const SPARE: Duration = Duration::from_secs(15);

/// Why the operations listener ended.
fn operations_failure(ended: Result<io::Result<()>, JoinError>) -> ServiceError {
    let name = "operations listener";
    match ended {
        Ok(Ok(())) => ServiceError::Ended(name),
        Ok(Err(error)) => ServiceError::Failed(name, error),
        Err(_) => ServiceError::Panicked(name),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::future::pending;

    use super::*;

    /// Anything slower is taken for a hang.
    const PATIENCE: Duration = Duration::from_secs(20);

    async fn service() -> (Service, std::net::SocketAddr) {
        let listener = server::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let facts = || std::future::ready(Facts::default());
        let config = ServerConfig::default();
        (Service::start("test", &config, listener, Registry::default(), None, facts).unwrap(), address)
    }

    #[tokio::test]
    async fn a_job_that_panics_ends_the_service_with_an_error() {
        let (mut service, operations) = service().await;
        let stop = service.stop();
        service.job("follows the stop", async move { stop.requested().await });
        service.job("broken", async { panic!("on purpose") });
        let ended = timeout(PATIENCE, service.run()).await.unwrap();
        assert_eq!(ended.unwrap_err().to_string(), "`broken` panicked");
        assert!(std::net::TcpStream::connect(operations).is_err(), "liveness must not be answered any more");
    }

    #[tokio::test]
    async fn a_job_that_fails_while_it_stops_is_an_error() {
        let (mut service, _) = service().await;
        let (stop, ask_to_stop) = (service.stop(), service.ask_to_stop.clone());
        service.job("fails at the end", async move {
            stop.requested().await;
            panic!("on purpose");
        });
        ask_to_stop.send_replace(true);
        let ended = timeout(PATIENCE, service.run()).await.unwrap();
        assert_eq!(ended.unwrap_err().to_string(), "`fails at the end` panicked");
    }

    #[tokio::test]
    async fn a_stop_cuts_off_what_has_to_be_done_before_the_service_is_ready() {
        let (service, _) = service().await;
        assert_eq!(service.unless_stopped(async { 1 }).await, Some(1));
        service.ask_to_stop.send_replace(true);
        assert_eq!(timeout(PATIENCE, service.unless_stopped(pending::<()>())).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_job_that_ends_by_itself_ends_the_service_with_an_error() {
        let (mut service, _) = service().await;
        service.job("short", async {});
        let ended = timeout(PATIENCE, service.run()).await.unwrap();
        assert_eq!(ended.unwrap_err().to_string(), "`short` ended before the service was asked to stop");
    }

    #[tokio::test]
    async fn a_stop_is_no_error_and_waits_for_jobs() {
        let (mut service, _) = service().await;
        let (stop, ask_to_stop) = (service.stop(), service.ask_to_stop.clone());
        let (done, is_done) = tokio::sync::oneshot::channel();
        service.job("slow to stop", async move {
            stop.requested().await;
            tokio::task::yield_now().await;
            done.send(()).unwrap();
        });
        let running = tokio::spawn(service.run());
        ask_to_stop.send_replace(true);
        timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
        is_done.await.unwrap();
    }

    /// Threads race here: the end of a job may be noticed before the stop that caused it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn jobs_that_end_because_of_the_stop_are_no_failure() {
        for _ in 0..50 {
            let (mut service, _) = service().await;
            let ask_to_stop = service.ask_to_stop.clone();
            for _ in 0..8 {
                let stop = service.stop();
                service.job("follows the stop", async move { stop.requested().await });
            }
            let running = tokio::spawn(service.run());
            tokio::task::yield_now().await;
            ask_to_stop.send_replace(true);
            timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_job_that_does_not_end_is_aborted() {
        let (mut service, _) = service().await;
        service.server.shutdown_grace_secs = 0;
        let ask_to_stop = service.ask_to_stop.clone();
        service.job("endless", pending());
        ask_to_stop.send_replace(true);
        timeout(PATIENCE, service.run()).await.unwrap().unwrap();
    }
}
