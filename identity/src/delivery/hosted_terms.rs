//! Policies hosted by this server, rendered from Markdown files at startup.

use std::{collections::BTreeMap, fs, io};

use url::Url;

use crate::domain::{markdown, terms::Policy};

/// Why a policy cannot be hosted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostedTermsError {
    /// The file is missing, unreadable or not UTF-8.
    #[error("cannot read the policy {path}: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// The I/O error.
        source: io::Error,
    },
    /// No URL can be made for the page.
    #[error("identity.public_base_url cannot be used as the base of a policy's URL")]
    NoAddress,
}

/// One policy in one language.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TermsPage {
    /// The policy's name in this language.
    pub(crate) title: String,
    /// The text, as an HTML fragment.
    pub(crate) html: String,
}

/// All pages, by policy, version and language.
#[derive(Debug, Default)]
pub(crate) struct HostedTerms(BTreeMap<[String; 3], TermsPage>);

impl HostedTerms {
    /// Renders the files named in `policies`. A policy without a URL of its own gets the one it is hosted at:
    /// `{base_url}/_waypost/terms/{policy}/{version}/{language}`.
    pub(crate) fn load(policies: &mut BTreeMap<String, Policy>, base_url: &str) -> Result<Self, HostedTermsError> {
        let mut pages = BTreeMap::new();
        for (id, policy) in policies {
            for (language, text) in &mut policy.languages {
                let Some(file) = &text.file else { continue };
                let markdown = fs::read_to_string(file)
                    .map_err(|source| HostedTermsError::Unreadable { path: file.display().to_string(), source })?;
                let page = TermsPage { title: text.name.clone(), html: markdown::to_html(&markdown) };
                let place = [id.clone(), policy.version.clone(), language.clone()];
                if text.url.is_empty() {
                    text.url = address(base_url, &place).ok_or(HostedTermsError::NoAddress)?;
                }
                pages.insert(place, page);
            }
        }
        Ok(Self(pages))
    }

    /// Looks up a page.
    pub(crate) fn page(&self, policy: &str, version: &str, language: &str) -> Option<&TermsPage> {
        self.0.get(&[policy, version, language].map(str::to_owned))
    }
}

fn address(base_url: &str, place: &[String; 3]) -> Option<String> {
    let mut url = Url::parse(base_url).ok()?;
    url.path_segments_mut().ok()?.pop_if_empty().extend(["_waypost", "terms"]).extend(place);
    Some(url.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::domain::terms::PolicyText;

    use super::*;

    fn policies(file: &std::path::Path, url: &str) -> BTreeMap<String, Policy> {
        let text = PolicyText { name: "Privacy".to_owned(), url: url.to_owned(), file: Some(file.to_owned()) };
        let languages = BTreeMap::from([("en".to_owned(), text)]);
        BTreeMap::from([("privacy policy".to_owned(), Policy { version: "1.0".to_owned(), languages })])
    }

    #[test]
    fn a_hosted_policy_gets_a_url_unless_it_has_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("privacy.md");
        fs::write(&file, "# We keep nothing").unwrap();
        let mut theirs = policies(&file, "https://example.com/privacy");
        let mut ours = policies(&file, "");
        HostedTerms::load(&mut theirs, "https://id.test").unwrap();
        let pages = HostedTerms::load(&mut ours, "https://id.test/identity").unwrap();
        fs::remove_file(&file).unwrap();

        assert_eq!(theirs["privacy policy"].languages["en"].url, "https://example.com/privacy");
        let url = "https://id.test/identity/_waypost/terms/privacy%20policy/1.0/en";
        assert_eq!(ours["privacy policy"].languages["en"].url, url);
        let page = TermsPage { title: "Privacy".to_owned(), html: "<h1>We keep nothing</h1>\n".to_owned() };
        assert_eq!(pages.page("privacy policy", "1.0", "en"), Some(&page));
        assert_eq!(pages.page("privacy policy", "2.0", "en"), None);
        assert!(HostedTerms::load(&mut ours, "https://id.test").unwrap_err().to_string().contains(".md"));
    }
}
