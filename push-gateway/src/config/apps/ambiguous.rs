//! Finds entries of `[[apps]]` that match the same `app_id` with equal precedence.

use waypost_shared::config::file::{ConfigError, Source};

use super::AppConfig;
use crate::glob::Glob;

/// Reports each entry that clashes with an earlier one: neither id is exact or longer.
pub(in crate::config) fn problems(apps: &[AppConfig], source: &Source) -> Vec<ConfigError> {
    let globs: Vec<_> = apps.iter().map(|app| Glob::new(&app.id)).collect();
    let mut errors = Vec::new();
    // A missing id is reported elsewhere.
    for (later, glob) in globs.iter().enumerate().filter(|(_, glob)| glob.len() > 0) {
        let clash = globs[..later].iter().position(|earlier| {
            if earlier.is_exact() || glob.is_exact() {
                earlier == glob
            } else {
                earlier.len() == glob.len() && earlier.overlaps(glob)
            }
        });
        if let Some(earlier) = clash {
            let problem = format!(
                "an app_id can match both this and apps.{earlier}.id, and neither is longer; make one of them more specific"
            );
            errors.push(source.error(&format!("apps.{later}.id"), problem));
        }
    }
    errors
}
