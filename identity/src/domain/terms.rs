//! Terms of service: the policies, and which of them a user still has to accept.
//!
//! Source: Identity Service API, "Terms of service".

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// A policy in all its languages.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Policy {
    /// The version; each new version must be accepted again.
    pub(crate) version: String,
    /// The texts by language tag (`en`, `de`).
    pub(crate) languages: BTreeMap<String, PolicyText>,
}

/// A policy in one language.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PolicyText {
    /// The name shown to users.
    pub(crate) name: String,
    /// The URL of the text. May be omitted if there is a `file`.
    pub(crate) url: String,
    /// A Markdown file with the text, to be hosted by this server. Default none.
    pub(crate) file: Option<PathBuf>,
}

/// The id and version of a policy, the unit of acceptance.
pub(crate) type PolicyVersion = (String, String);

/// All policies, by id (`privacy_policy`).
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms(pub(crate) BTreeMap<String, Policy>);

impl Terms {
    /// The body of `GET /terms`.
    pub(crate) fn to_json(&self) -> Value {
        let policies: Map<_, _> = self
            .0
            .iter()
            .map(|(id, policy)| {
                let mut object = Map::new();
                object.insert("version".to_owned(), json!(policy.version));
                for (language, text) in &policy.languages {
                    object.insert(language.clone(), json!({"name": text.name, "url": text.url}));
                }
                (id.clone(), Value::Object(object))
            })
            .collect();
        json!({ "policies": policies })
    }

    /// The current versions of the policies with this URL in any language. Accepting one language accepts them all.
    pub(crate) fn with_url(&self, url: &str) -> Vec<PolicyVersion> {
        let has_url = |policy: &Policy| policy.languages.values().any(|text| text.url == url);
        let found = self.0.iter().filter(|(_, policy)| has_url(policy));
        found.map(|(id, policy)| (id.clone(), policy.version.clone())).collect()
    }

    /// Whether there is nothing to accept.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `accepted` covers the current version of every policy.
    pub(crate) fn are_accepted_by(&self, accepted: &BTreeSet<PolicyVersion>) -> bool {
        self.0.iter().all(|(id, policy)| accepted.contains(&(id.clone(), policy.version.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(version: &str) -> Terms {
        let text = |url: &str| PolicyText { name: "Privacy".to_owned(), url: url.to_owned(), file: None };
        let languages = BTreeMap::from([
            ("en".to_owned(), text("https://is.test/en")),
            ("de".to_owned(), text("https://is.test/de")),
        ]);
        Terms(BTreeMap::from([("privacy_policy".to_owned(), Policy { version: version.to_owned(), languages })]))
    }

    #[test]
    fn one_language_counts_for_all_and_a_new_version_must_be_accepted_again() {
        let accepted: BTreeSet<_> = terms("1").with_url("https://is.test/de").into_iter().collect();
        assert!(terms("1").are_accepted_by(&accepted));
        assert!(!terms("2").are_accepted_by(&accepted));
        assert!(!terms("1").are_accepted_by(&BTreeSet::new()));
        assert!(terms("1").with_url("https://is.test/fr").is_empty());
    }

    #[test]
    fn the_answer_has_the_shape_of_the_specification() {
        let expected = json!({"policies": {"privacy_policy": {
            "version": "1",
            "en": {"name": "Privacy", "url": "https://is.test/en"},
            "de": {"name": "Privacy", "url": "https://is.test/de"},
        }}});
        assert_eq!(terms("1").to_json(), expected);
        assert_eq!(Terms::default().to_json(), json!({"policies": {}}));
    }
}
