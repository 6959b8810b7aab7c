// The mode as OHIF imports it. One that cannot be loaded leaves the viewer as it is, under the same address.
const broken = error => ({
  id: '@voxloop/mode-label',
  async modeFactory({ loadModules }) {
    const [segmentation] = await loadModules(['@ohif/mode-segmentation']);
    const mode = segmentation.modeFactory({ modeConfiguration: {} });
    const message = `The mode Label could not be loaded: ${error.message}. Reload the page; if that does not help, see the browser's console.`;
    return {
      ...mode,
      id: '@voxloop/mode-label',
      routeName: 'label',
      displayName: 'Label (could not be loaded)',
      onModeEnter(context) {
        mode.onModeEnter(context);
        const { uiNotificationService } = context.servicesManager.services;
        uiNotificationService.show({ title: 'Voxloop', message, type: 'error', duration: 60000 });
      },
    };
  },
});

export default await import('./mode.js').then(
  module => module.default,
  error => {
    console.error('[voxloop]', error);
    return broken(error);
  }
);
