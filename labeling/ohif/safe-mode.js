// The mode as OHIF imports it. One that cannot be loaded leaves the viewer as it is, under the same address.
const broken = error => ({
  id: '@voxloop/mode-label',
  async modeFactory({ loadModules }) {
    const [basic] = await loadModules(['@ohif/mode-basic']);
    const mode = basic.modeFactory({ modeConfiguration: basic.modeInstance ?? {} });
    return { ...mode, id: '@voxloop/mode-label', routeName: 'label', displayName: `Label (could not be loaded: ${error.message})` };
  },
});

export default await import('./mode.js').then(
  module => module.default,
  error => {
    console.error('[voxloop]', error);
    return broken(error);
  }
);
