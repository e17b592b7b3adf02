//! `doctor`: checks what `serve` will need, says for each failure what to change, and changes nothing.

mod database;
mod files;
mod findings;
mod listeners;
mod mail;
mod network;

use std::{path::Path, process::ExitCode};

use waypost_shared::{
    client::{Outbound, OutboundConfig},
    operations::doctor::{Finding, Report},
};

use self::{
    findings::{Findings, Skew, one, told},
    listeners::Running,
};
use crate::{
    app::base_url,
    config::Config,
    delivery::{hosted_terms::HostedTerms, templates::Templates},
    domain::signing::SigningKeys,
};

/// Runs all checks and prints one line for each finding.
pub(super) async fn run(config: &Config, file: Option<&Path>) -> ExitCode {
    let mut report = Report::default();
    let mut say = |findings: Findings| {
        for (what, finding) in findings {
            report.say(&what, &finding);
        }
    };
    let source = file.map_or_else(|| "the defaults".to_owned(), |file| file.display().to_string());
    say(one("configuration", Finding::Good(format!("{source} is understood"))));

    let database = Box::pin(database::check(config)).await;
    let signing_keys = files::signing_keys(config, database.is_new);
    say(files::data_folder(config, database.is_sqlite));
    say(database.findings);
    say(files::storage_keys(config, database.is_new, database.store.as_ref()).await);
    say(one("signing key", signing_keys.finding));
    if let Some(store) = &database.store {
        say(one("pepper", database::pepper(store).await));
        store.close().await;
    }
    say(one("templates", templates(config)));
    if let Some(finding) = policies(config) {
        say(one("policies", finding));
    }
    say(one("trusted proxies", listeners::trusted_proxies(config)));
    say(one("allowed homeservers", allowed_homeservers(config)));

    // This machine itself is called without the proxy.
    let here = OutboundConfig { proxy_url: None, proxy_url_file: None, ..config.outbound.clone() };
    match Outbound::new(&config.outbound).and_then(|outbound| Ok((outbound, Outbound::new(&here)?))) {
        Err(error) => say(one("outgoing calls", Finding::Bad(format!("cannot be set up: {}", told(&error))))),
        Ok((outbound, here)) => {
            let keys = signing_keys.keys.as_ref();
            let (running, findings) = Box::pin(listeners::check(config, &here, keys)).await;
            say(findings);
            for findings in Box::pin(calls(config, &outbound, running, keys, database.skew)).await {
                say(findings);
            }
        }
    }
    match report.bad() {
        0 => ExitCode::SUCCESS,
        bad => {
            eprintln!("{bad} of the checks failed");
            ExitCode::FAILURE
        }
    }
}

/// Whose users may register.
fn allowed_homeservers(config: &Config) -> Finding {
    if config.homeservers.allow.is_empty() {
        return Finding::Soon(
            "anybody's users may register here: name your homeservers in homeservers.allow; if it is to be open, name the \
             ones you know in homeservers.trusted"
                .to_owned(),
        );
    }
    Finding::Good(format!("{} may register users", config.homeservers.allow.join(", ")))
}

/// All checks that wait for others, concurrently.
async fn calls(
    config: &Config,
    outbound: &Outbound,
    running: Running,
    keys: Option<&SigningKeys>,
    skew: Option<Skew>,
) -> Vec<Findings> {
    let (dns, proxy, mail, sms, public, homeservers) = tokio::join!(
        network::dns(config, outbound),
        network::proxy(outbound),
        Box::pin(mail::check(config)),
        network::sms(config, outbound),
        Box::pin(network::public_base_url(config, outbound, running, keys)),
        Box::pin(network::homeservers(config, outbound)),
    );
    let (public, public_skew) = public;
    let (homeservers, homeserver_skews) = homeservers;
    // The reverse proxy may be this machine, so its clock counts only if there is no other.
    let others: Vec<_> = skew.into_iter().chain(homeserver_skews).collect();
    let skews = if others.is_empty() { public_skew.into_iter().collect() } else { others };
    let clock = network::clock(&skews);
    vec![
        one("dns", dns),
        proxy.map(|proxy| one("outgoing proxy", proxy)).unwrap_or_default(),
        one("clock", clock),
        one("mail", mail),
        one("text messages", sms),
        one("public base URL", public),
        homeservers,
    ]
}

fn templates(config: &Config) -> Finding {
    match Templates::load(config.email.template_dir.as_deref(), &config.email.default_language) {
        Ok(_) => Finding::Good("of mails, messages and pages are understood".to_owned()),
        Err(error) => Finding::Bad(format!("{error}: fix or remove the file, in the folder email.template_dir")),
    }
}

/// `None` if the server hosts no policies itself.
fn policies(config: &Config) -> Option<Finding> {
    let mut policies = config.terms.policies.clone();
    if !policies.values().flat_map(|policy| policy.languages.values()).any(|text| text.file.is_some()) {
        return None;
    }
    let base_url = base_url(config.identity.public_base_url.as_ref(), config.listen.public);
    Some(match HostedTerms::load(&mut policies, &base_url) {
        Ok(_) => Finding::Good("their files exist".to_owned()),
        Err(error) => Finding::Bad(format!("{error}: put the file there, or set its `url` instead")),
    })
}
