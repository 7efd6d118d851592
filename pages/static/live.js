// Connects htmx's server-sent events with the rest of a page, and says when a part could not be loaded.
"use strict";

(() => {
  const say = (sentence) => {
    const status = document.getElementById("status");
    if (status) status.textContent = sentence;
  };

  // htmx opens the one stream of a page; what else is live hears of it as an event of the document.
  htmx.createEventSource = (address) => {
    const source = new EventSource(address);
    const topics = new Set();
    const hear = (topic) => {
      if (topics.has(topic)) return;
      topics.add(topic);
      source.addEventListener(topic, () => document.dispatchEvent(new CustomEvent("live", { detail: topic })));
    };
    document.querySelectorAll("[data-topic]").forEach((element) => hear(element.dataset.topic));
    source.addEventListener("open", () => say(""));
    source.addEventListener("error", () => say("This page is no longer live: the dashboard does not answer."));
    return source;
  };

  document.addEventListener("htmx:responseError", (event) => {
    if (event.detail.xhr.status !== 401) say("A part of this page could not be loaded; load the page again.");
  });
  document.addEventListener("htmx:sendError", () => say("The dashboard does not answer."));
})();
