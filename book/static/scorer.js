// The weights of the search, as Sphinx has them but for the first: a heading that says what was searched for comes before
// pages that merely have its words.
var Scorer = {
  title: 100,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
};
