//! Markdown to HTML, for policies hosted by this server.

use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, TagEnd, html};

/// Allowed schemes of links. The texts are the operator's own, but a page people are asked to trust must not run
/// scripts.
const SCHEMES: [&str; 4] = ["http", "https", "mailto", "tel"];

/// Renders CommonMark with tables, footnotes and strikethrough. HTML in it is shown as text.
pub(crate) fn to_html(text: &str) -> String {
    let options = Options::ENABLE_TABLES | Options::ENABLE_FOOTNOTES | Options::ENABLE_STRIKETHROUGH;
    let events = Parser::new_ext(text, options).map(|event| match event {
        Event::Html(text) | Event::InlineHtml(text) => Event::Text(text),
        Event::Start(Tag::HtmlBlock) => Event::Start(Tag::Paragraph),
        Event::End(TagEnd::HtmlBlock) => Event::End(TagEnd::Paragraph),
        Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
            let dest_url = if is_harmless(&dest_url) { dest_url } else { CowStr::Borrowed("#") };
            Event::Start(Tag::Link { link_type, dest_url, title, id })
        }
        // The page loads no external content, so an image is replaced by its description.
        Event::Start(Tag::Image { .. }) => Event::Start(Tag::Emphasis),
        Event::End(TagEnd::Image) => Event::End(TagEnd::Emphasis),
        event => event,
    });
    let mut page = String::with_capacity(text.len() * 2);
    html::push_html(&mut page, events);
    page
}

/// Whether a URL has one of the [`SCHEMES`] or none. Mail addresses in angle brackets arrive without one.
fn is_harmless(url: &str) -> bool {
    let before = url.split(['/', '?', '#']).next().unwrap_or_default();
    match before.split_once(':') {
        Some((scheme, _)) => SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known)),
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_becomes_html() {
        for (text, html) in [
            ("# Privacy\n\nWe keep *nothing*.", "<h1>Privacy</h1>\n<p>We keep <em>nothing</em>.</p>\n"),
            ("![a map](javascript:x)", "<p><em>a map</em></p>\n"),
            ("- one\n- two\n", "<ul>\n<li>one</li>\n<li>two</li>\n</ul>\n"),
            ("[us](https://example.com/a?b&c)", "<p><a href=\"https://example.com/a?b&amp;c\">us</a></p>\n"),
            ("[here](#top) [there](other/page)", "<p><a href=\"#top\">here</a> <a href=\"other/page\">there</a></p>\n"),
            ("<privacy@example.com>", "<p><a href=\"mailto:privacy@example.com\">privacy@example.com</a></p>\n"),
        ] {
            assert_eq!(to_html(text), html);
        }
    }

    #[test]
    fn embedded_html_and_scripts_become_text() {
        for text in [
            "<script>alert(1)</script>",
            "a <img src=x onerror=alert(1)> b",
            "<div onclick='alert(1)'>\n\nx\n\n</div>",
            "[x](javascript:alert(1))",
            "[x](JavaScript:alert(1))",
            "[x](data:text/html,x)",
            "[x][y]\n\n[y]: vbscript:x",
        ] {
            let html = to_html(text).to_ascii_lowercase();
            for never in ["<script", "<img", "<div", "javascript:", "href=\"data:", "vbscript:"] {
                assert!(!html.contains(never), "{text}: {html}");
            }
        }
    }
}
