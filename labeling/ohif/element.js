// An element for the React that OHIF is built with (18), which a module outside of its build cannot import.
export const element = (type, props = {}) => ({
  $$typeof: Symbol.for('react.element'),
  type,
  key: null,
  ref: null,
  props,
  _owner: null,
  _store: {},
});
