//! Entries of `[[apps]]` that one `app_id` could belong to both of.

use waypost_shared::config::file::{ConfigError, Source};

use super::AppConfig;
use crate::glob::Glob;

/// Finds each entry that a longer id does not tell apart from an earlier one.
pub(in crate::config) fn problems(apps: &[AppConfig], source: &Source) -> Vec<ConfigError> {
    let globs: Vec<_> = apps.iter().map(|app| Glob::new(&app.id)).collect();
    let mut errors = Vec::new();
    // An id that is missing is another mistake.
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
                "an app_id can match this and apps.{earlier}.id, and neither is longer; make one of them more particular"
            );
            errors.push(source.error(&format!("apps.{later}.id"), problem));
        }
    }
    errors
}
