// The viewer's configuration. It is a classic script that runs before the build's own.

// 3.12.10 reads a bare `__filename` whenever a style sheet is the last of its files to arrive.
window.__filename ??= '/';
window.__dirname ??= '/';

window.config = {
  routerBasename: '/',
  extensions: ['/plugins/safe.js'],
  modes: ['/plugins/safe-mode.js'],
  customizationService: [{ 'ohif.tours': { $set: [] } }],
  showStudyList: true,
  groupEnabledModesFirst: true,
  showLoadingIndicator: true,
  showWarningMessageForCrossOrigin: false,
  showCPUFallbackMessage: true,
  showErrorDetails: 'always',
  strictZSpacingForVolumeViewport: true,
  allowMultiSelectExport: false,
  investigationalUseDialog: { option: 'never' },
  maxNumberOfWebWorkers: 3,
  maxNumRequests: { interaction: 100, thumbnail: 75, prefetch: 25 },
  defaultDataSourceName: 'dicomweb',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'dicomweb',
      configuration: {
        friendlyName: 'Voxloop',
        name: 'dicomweb',
        qidoRoot: '/dicomweb',
        wadoRoot: '/dicomweb',
        wadoUriRoot: '/dicomweb',
        qidoSupportsIncludeField: true,
        supportsReject: false,
        supportsStow: true,
        supportsWildcard: true,
        supportsFuzzyMatching: false,
        dicomUploadEnabled: true,
        imageRendering: 'wadors',
        thumbnailRendering: 'wadors',
        enableStudyLazyLoad: true,
        omitQuotationForMultipartRequest: true,
        singlepart: 'bulkdata,video',
        bulkDataURI: { enabled: true, relativeResolution: 'studies' },
      },
    },
  ],
};
